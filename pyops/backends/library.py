"""Row `library`: the convolution of cuDNN or oneDNN, then our epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import Epilogue, Spec

name = "library"


def available() -> list[str]:
    return []


def reasons(input: Tensor, weight: Tensor | None, spec: Spec | None) -> list[str]:
    return []


_MKLDNN = torch.backends.mkldnn.is_available()
# What this CPU has no instructions to multiply: oneDNN emulates it, many times slower than fp32.
_EMULATED = {
    dtype
    for dtype, supported in (
        (torch.bfloat16, _MKLDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        (torch.float16, _MKLDNN and torch.ops.mkldnn._is_mkldnn_fp16_supported()),
    )
    if not supported
}


def arithmetic_type(input: Tensor) -> torch.dtype:
    """What to convolve in: the input's dtype, or fp32 where the CPU would emulate it (nearer to fp64, and faster)."""
    return torch.float32 if input.device.type == "cpu" and input.dtype in _EMULATED else input.dtype


def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    return torch.conv2d(input, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups)


def epilogue(z: Tensor, arguments: Epilogue) -> Tensor:
    return torch.ops.atrous._epilogue(z, *arguments)


def in_arithmetic_type(run, input: Tensor, weights: tuple[Tensor | None, ...], arguments: Epilogue) -> Tensor:
    """run(input, weights, arguments) in the dtype that the processor has; the result in the input's dtype."""
    dtype = arithmetic_type(input)
    if dtype == input.dtype:
        return run(input, weights, arguments)
    residual = arguments.residual
    arguments = arguments._replace(residual=None if residual is None else residual.to(dtype))
    weights = tuple(w if w is None else w.to(dtype) for w in weights)
    return run(input.to(dtype), weights, arguments).to(input.dtype)


def conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    def run(input, weights, arguments):
        return epilogue(convolution(input, *weights, spec), arguments)

    return in_arithmetic_type(run, input, (weight, bias), arguments)


_PREPACKED = (torch.float32, torch.bfloat16)


# The frozen form: weights that do not change may be laid out once as oneDNN wants them.


def pack_key(input: Tensor, weight: Tensor, spec: Spec) -> tuple:
    """What a pack depends on besides the weight."""
    return (input.device.type, input.dtype, tuple(input.shape))


def pack(input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """The weight as `packed_conv_epilogue` wants it. On CPU: oneDNN's own layout, an opaque tensor that cannot be copied."""
    weight = weight.to(arithmetic_type(input))
    if input.device.type != "cpu" or not _MKLDNN or weight.dtype not in _PREPACKED or torch.compiler.is_compiling():
        return weight
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight, spec.padding, spec.stride, spec.dilation, spec.groups, list(input.shape)
    )


def packed_conv_epilogue(
    input: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
) -> Tensor:
    """conv_epilogue with the weight in both forms."""
    if not packed.is_mkldnn:
        return conv_epilogue(input, packed, bias, spec, arguments)

    def run(input, weights, arguments):
        name, scalars = _onednn_activation(arguments)
        geometry = (spec.padding, spec.stride, spec.dilation, spec.groups)
        z = torch.ops.mkldnn._convolution_pointwise(input, packed, *weights, *geometry, name or "none", scalars, "")
        return z if name else epilogue(z, arguments)

    return in_arithmetic_type(run, input, (bias,), arguments)


def _onednn_activation(arguments: Epilogue) -> tuple[str, list[float]]:
    """oneDNN's name for the whole epilogue, or "". Its relu, and its leaky_relu of slope 0, turn NaN into 0: not those."""
    plain = arguments.mean is None and arguments.residual is None
    if not plain or arguments.slope_kind != "number" or arguments.slope_value == 0.0:
        return "", []
    return ("none", []) if arguments.slope_value == 1.0 else ("leaky_relu", [arguments.slope_value])
