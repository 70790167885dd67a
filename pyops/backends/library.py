"""Row `library`: the convolution of cuDNN or oneDNN, then our epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.layout import laid_out, memory_format
from ..core.spec import Epilogue, Spec
from .arithmetic import MKLDNN, arithmetic_type, in_arithmetic_type
from .training import convolution, convolution_backward, convolution_statistics, primitive  # noqa: F401

name = "library"


def available() -> list[str]:
    return []


def reasons(input: Tensor, weight: Tensor | None, spec: Spec | None) -> list[str]:
    return []


def epilogue(z: Tensor, arguments: Epilogue) -> Tensor:
    return primitive("_epilogue", z)(z, *arguments)


def conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    def run(input, weights, arguments):
        weight, bias = weights
        if input.is_cuda and bias is not None and arguments.mean is None:  # cuDNN's bias is a pass of its own
            bias, arguments = None, arguments._replace(beta=bias)
        return epilogue(convolution(input, weight, bias, spec), arguments)

    return in_arithmetic_type(run, input, (weight, bias), arguments)


# The frozen form: on CPU a weight that does not change is laid out once as oneDNN wants it.


def pack_reasons(input: Tensor, weight: Tensor, spec: Spec) -> list[str]:
    return []


def pack_key(input: Tensor, weight: Tensor, spec: Spec) -> tuple:
    """What a pack depends on besides the weight."""
    return (input.device.type, input.dtype, tuple(input.shape))


def pack(input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """The weight as `packed_conv_epilogue` wants it. On CPU: oneDNN's own layout, opaque and not to be copied."""
    dtype = arithmetic_type(input)
    known = dtype in (torch.float32, torch.bfloat16)
    if input.device.type != "cpu" or not MKLDNN or not known or torch.compiler.is_compiling():
        return weight
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight.to(dtype), spec.padding, spec.stride, spec.dilation, spec.groups, list(input.shape)
    )


def packed_conv_epilogue(
    input: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
) -> Tensor:
    """conv_epilogue with the weight in both forms."""
    if not packed.is_mkldnn:
        return conv_epilogue(input, weight, bias, spec, arguments)
    layout = memory_format(input, weight)

    def run(input, weights, arguments):
        activation, scalars = _onednn_activation(arguments)
        bias = None if weights[0] is None else weights[0].contiguous()  # it reads a vector without its stride
        geometry = (spec.padding, spec.stride, spec.dilation, spec.groups)
        z = torch.ops.mkldnn._convolution_pointwise(input, packed, bias, *geometry, activation or "none", scalars, "")
        z = laid_out(z, z.dtype, layout)  # oneDNN has a layout of its own, whatever the input's
        return z if activation else epilogue(z, arguments)

    return in_arithmetic_type(run, input, (bias,), arguments)


def _onednn_activation(arguments: Epilogue) -> tuple[str, list[float]]:
    """oneDNN's name for the whole epilogue, or "". Its relu, and leaky_relu of slope 0, turn NaN into 0: not those."""
    plain = arguments.mean is None and arguments.beta is None and arguments.residual is None
    if not plain or arguments.slope_kind != "number" or arguments.slope_value == 0.0:
        return "", []
    return ("none", []) if arguments.slope_value == 1.0 else ("leaky_relu", [arguments.slope_value])
