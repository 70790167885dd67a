"""The primitives in plain torch, used where none of our kernels runs.

They compute in fp32, or fp64 for fp64 tensors, and round once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..core.spec import accumulate_type
from . import fake


def _widened(function, z: Tensor, *arguments):
    """function(z, *arguments) in accumulate_type(z.dtype)."""
    wide = accumulate_type(z.dtype)
    cast = [a.to(wide) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    return function(z.to(wide), *cast)


def _epilogue(z: Tensor, *arguments) -> Tensor:
    return torch.empty_like(z).copy_(_widened(reference.epilogue, z, *arguments))


_epilogue_again = _epilogue


def _epilogue_reduce(grad: Tensor, z: Tensor, *arguments) -> Tensor:
    return _widened(reference.epilogue_reduce, grad, z, *arguments)


def _epilogue_backward(grad: Tensor, z: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    dz, du = fake._epilogue_backward(grad, z, *arguments)  # allocates the results in the layout of z
    wide = _widened(reference.epilogue_backward, grad, z, *arguments)
    return dz.copy_(wide[0]), du.copy_(wide[1])


def _statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    if z.numel():
        return _widened(reference.statistics, z)
    mean, var = fake._statistics(z)
    return mean.zero_(), var.zero_()


def _conv_statistics(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    z = fake._conv(*arguments)
    return z, *_statistics(z)


def _conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *arguments) -> Tensor:
    z = fake._conv(input, weight, bias, stride, padding, dilation, groups)
    return _epilogue(z, *arguments)
