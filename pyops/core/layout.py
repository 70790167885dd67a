"""The memory layout of a feature map: NCHW or channels_last (NHWC)."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> bool:
    """True if the strides of x are ordered as NHWC and not as NCHW: x.suggest_memory_format() of C++."""
    if x.dim() != 4:
        return False
    nhwc = x.is_contiguous(memory_format=torch.channels_last)
    if nhwc != x.is_contiguous():  # the common case: dense in exactly one of the two
        return nhwc
    if x.stride(1) == 0 or 0 in x.shape:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        if x.stride(axis) < least or (axis == 0 and least == x.stride(1)):
            return False
        least = x.stride(axis) * x.shape[axis]
    return True


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """Returns the output layout of eager's convolution: channels_last if any of the tensors is.

    torch makes them dense first; maps of one number that were not have no layout then.
    """
    if any(map(channels_last, tensors)) and any(map(_channels_last_if_dense, tensors)):
        return torch.channels_last
    return torch.contiguous_format


def _channels_last_if_dense(x: Tensor) -> bool:
    """channels_last() of x.contiguous(memory_format=torch.channels_last)."""
    if x.dim() == 4 and not x.is_contiguous(memory_format=torch.channels_last):
        return x.shape[1:].numel() > 1
    return channels_last(x)


def laid_out(x: Tensor, dtype: torch.dtype, layout: torch.memory_format | None = None) -> Tensor:
    """Returns x in this dtype and layout.

    An x that has both already is returned as the same object, since recompute information may be attached to it; in a
    compiled graph `to` and `contiguous` would return another.
    """
    if x.dtype != dtype:
        x = x.to(dtype)
    if layout is None or x.is_contiguous(memory_format=layout):
        return x
    return x.contiguous(memory_format=layout)
