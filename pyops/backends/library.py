"""Backend `library`: the convolution of cuDNN or oneDNN, then our epilogue in a kernel of its own.

On a CPU a ReLU alone is torch's relu_, and the packed weight is in oneDNN's own layout, which is opaque and must not be
copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.layout import laid_out, memory_format
from ..core.spec import Epilogue, Spec, accumulate_type
from ..core.torch_compat import is_compiling, onednn_convolution, onednn_pack
from ..tuning import all_ints
from .aten import (  # noqa: F401
    compute_dtype,
    convolution,
    convolution_backward,
    convolution_statistics,
    in_compute_dtype,
    primitive,
    relu_alone,
)

name = "library"
one_launch_statistics = False


def available() -> list[str]:
    return []


def reasons(input: Tensor, weight: Tensor | None, spec: Spec | None) -> list[str]:
    return []


def epilogue(z: Tensor, arguments: Epilogue) -> Tensor:
    return primitive("_epilogue", z)(z, arguments)


def conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    def run(input, weights, arguments):
        weight, bias = weights
        if relu_alone(input, arguments):
            return torch.relu_(convolution(input, weight, bias, spec))
        # The epilogue adds a bias as its beta. On a CPU oneDNN adds it before it rounds to 16 bits.
        rounds = input.device.type == "cpu" and accumulate_type(input.dtype) != input.dtype
        if bias is not None and not rounds and arguments.mean is None and arguments.beta is None:
            bias, arguments = None, arguments._replace(beta=bias)
        return epilogue(convolution(input, weight, bias, spec), arguments)

    return in_compute_dtype(run, input, (weight, bias), arguments)


def pack_reasons(input: Tensor, weight: Tensor, spec: Spec) -> list[str]:
    return []


def pack_key(input: Tensor, weight: Tensor, spec: Spec) -> tuple:
    return (input.device.type, input.dtype, tuple(input.shape))


def pack(input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    dtype = compute_dtype(input)
    known = dtype in (torch.float32, torch.bfloat16)
    fixed = all_ints(tuple(input.shape)) and not is_compiling()  # it is packed for one size of input
    if input.device.type != "cpu" or onednn_pack is None or not known or not fixed or _small(input, weight, spec):
        return weight
    geometry = (spec.padding, spec.stride, spec.dilation, spec.groups)
    return onednn_pack(weight.to(dtype), *geometry, list(input.shape))


def _small(input: Tensor, weight: Tensor, spec: Spec) -> bool:
    """True if a packed weight saves less than its call costs, 20 us: it saves 7 % of a convolution, and the packing."""
    height, width = spec.output_size(input.shape[2:], weight.shape[2:])
    return weight.numel() < 2**16 and input.shape[0] * height * width * weight.numel() < 2**23


def packed_normalizes(input: Tensor, weight: Tensor, spec: Spec) -> bool:
    return False


def packed_conv_epilogue(
    input: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
) -> Tensor:
    if packed is weight:
        return conv_epilogue(input, weight, bias, spec, arguments)
    layout = memory_format(input, weight)

    def run(input, weights, arguments):
        activation, scalars = _onednn_activation(arguments)
        bias = None if weights[0] is None else weights[0].contiguous()  # oneDNN ignores a vector's stride
        geometry = (spec.padding, spec.stride, spec.dilation, spec.groups)
        z = onednn_convolution(input, packed, bias, *geometry, activation or "none", scalars, "")
        z = laid_out(z, z.dtype, layout)  # oneDNN chooses its output's layout itself
        if relu_alone(input, arguments):
            return torch.relu_(z)
        return z if activation else epilogue(z, arguments)

    return in_compute_dtype(run, input, (bias,), arguments)


def _onednn_activation(arguments: Epilogue) -> tuple[str, list[float]]:
    """oneDNN's name and parameters for the whole epilogue, or ("", []) if it has none.

    Its relu, and its leaky_relu of slope 0, turn NaN into 0 and are not used.
    """
    plain = arguments.mean is None and arguments.beta is None and arguments.residual is None
    if not plain or arguments.slope_kind != "number" or arguments.slope_value == 0.0:
        return "", []
    return ("none", []) if arguments.slope_value == 1.0 else ("leaky_relu", [arguments.slope_value])
