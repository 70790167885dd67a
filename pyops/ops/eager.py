"""The primitives in plain torch, used where none of our kernels runs.

They compute in fp32, or fp64 for fp64 tensors, and round once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..core.spec import Epilogue, accumulate_type
from . import fake


def _widened(z: Tensor, *values) -> list:
    """z and the other values, the floating-point tensors among them in accumulate_type(z.dtype)."""
    wide = accumulate_type(z.dtype)
    return [v.to(wide) if isinstance(v, Tensor) and v.is_floating_point() else v for v in (z, *values)]


def _epilogue(z: Tensor, *arguments) -> Tensor:
    wide, *epilogue = _widened(z, *arguments)
    return torch.empty_like(z).copy_(reference.epilogue(wide, Epilogue(*epilogue)))


_epilogue_again = _epilogue


def _epilogue_reduce(grad: Tensor, z: Tensor, *arguments) -> Tensor:
    grad, z, *epilogue = _widened(grad, z, *arguments)
    return reference.epilogue_reduce(grad, z, Epilogue(*epilogue))


def _epilogue_backward(grad: Tensor, z: Tensor, means, need_z: bool, need_residual: bool, *arguments):
    dz, du = fake._epilogue_backward(grad, z, means, need_z, need_residual)  # allocates the results in the layout of z
    grad, z, means, *epilogue = _widened(grad, z, means, *arguments)
    wide = reference.epilogue_backward(grad, z, means, need_z, need_residual, Epilogue(*epilogue))
    return dz.copy_(wide[0]), du.copy_(wide[1])


def _epilogue_gradients(grad: Tensor, z: Tensor, batch_stats, need_z, need_residual, need_vectors, *arguments):
    results = fake._epilogue_gradients(grad, z, batch_stats, need_z, need_residual, need_vectors, *arguments)
    if not z.numel():
        return *results[:2], *(result.zero_() for result in results[2:])
    grad, z, *epilogue = _widened(grad, z, *arguments)
    needs = batch_stats, need_z, need_residual, need_vectors
    wide = reference.epilogue_gradients(grad, z, *needs, Epilogue(*epilogue))
    return tuple(result.copy_(value) for result, value in zip(results, wide))


def _statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    if z.numel():
        return reference.statistics(*_widened(z))
    mean, var = fake._statistics(z)
    return mean.zero_(), var.zero_()


def _statistics_epilogue(z: Tensor, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = _statistics(z)
    return _epilogue(z, *Epilogue(*arguments)._replace(mean=mean, var=var)), mean, var


def _conv_statistics(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    z = fake._conv(*arguments)
    return z, *_statistics(z)


def _conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *arguments) -> Tensor:
    z = fake._conv(input, weight, bias, stride, padding, dilation, groups)
    return _epilogue(z, *arguments)
