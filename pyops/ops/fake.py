"""Fakes of the primitives: shapes, dtypes and strides of their results, for torch.compile and export."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.spec import Epilogue, Spec, accumulate_type


def _epilogue(z: Tensor, *arguments) -> Tensor:
    return torch.empty_like(z)


_epilogue_again = _epilogue


def _epilogue_reduce(grad: Tensor, z: Tensor, *arguments) -> Tensor:
    return z.new_empty((3, z.shape[1]), dtype=accumulate_type(z.dtype))


def _epilogue_backward(grad: Tensor, z: Tensor, means, need_z: bool, need_residual: bool, *arguments):
    return tuple(torch.empty_like(z) if needed else z.new_empty(0) for needed in (need_z, need_residual))


def _epilogue_gradients(
    grad: Tensor, z: Tensor, batch_stats: bool, need_z: bool, need_residual: bool, need_vectors: bool, *arguments
) -> tuple[Tensor, ...]:
    e = Epilogue(*arguments)
    vectors = e.gamma, e.beta, e.slope if e.slope_kind == "tensor" else None
    dz, du = _epilogue_backward(grad, z, None, need_z, need_residual)
    return dz, du, *(v.new_empty(v.shape) if need_vectors and v is not None else z.new_empty(0) for v in vectors)


def _statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = (z.new_empty(z.shape[1], dtype=accumulate_type(z.dtype)) for _ in range(2))
    return mean, var


def _statistics_epilogue(z: Tensor, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(z), *_statistics(z)


def _conv(input, weight, bias, stride, padding, dilation, groups) -> Tensor:
    return torch.ops.aten.convolution(input, weight, bias, stride, padding, dilation, False, (0, 0), groups)


def _conv_statistics(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    z = torch.empty_like(_conv(*arguments))
    return z, *_statistics(z)


def _conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *arguments) -> Tensor:
    return torch.empty_like(_conv(input, weight, bias, stride, padding, dilation, groups))


def _winograd_weight(weight: Tensor, turned: bool = False, tile=(2, 2), int16: bool = False) -> Tensor:
    inner, outer = weight.shape[turned], weight.shape[not turned]
    panels, positions = (inner + 15) // 16, (tile[0] + 2) * (tile[1] + 2)
    if int16:  # pairs of channels, and a line of scales
        return weight.new_empty((panels, positions, (outer + 31) // 32 * 16 + 1, 32), dtype=torch.int16)
    return weight.new_empty((panels, positions, outer, 16), dtype=torch.float32)


def _winograd_weight_gradient(grad, input, padding, dilation, tile) -> Tensor:
    shape = (grad.shape[1], input.shape[1], 3, 3)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


def _winograd_epilogue(input, weight, transformed, turned, tile, int16, bias, padding, dilation, *arguments) -> Tensor:
    size = Spec.of((1, 1), padding, dilation).output_size(input.shape[2:], (3, 3))
    shape = (input.shape[0], weight.shape[turned], *size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


def pack(weight: Tensor, *geometry) -> Tensor:
    """oneDNN's packed weight: an opaque tensor of the weight's shape."""
    return torch.empty_like(weight)
