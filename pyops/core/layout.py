"""How a feature map lies in memory: NCHW or channels_last (NHWC)."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> bool:
    """Whether the strides of x are ordered as NHWC and not as NCHW, as x.suggest_memory_format() decides in C++."""
    if x.dim() != 4:
        return False
    nhwc = x.is_contiguous(memory_format=torch.channels_last)
    if nhwc != x.is_contiguous():  # the usual: it is one of them
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
    """What eager's convolution gives for these: channels_last if any of them is."""
    return torch.channels_last if any(map(channels_last, tensors)) else torch.contiguous_format


def laid_out(x: Tensor, dtype: torch.dtype, layout: torch.memory_format | None = None) -> Tensor:
    """x in this dtype and layout. Where it is so already: the very same object, with the recipe that it may carry, also
    in a compiled graph, in which `to` and `contiguous` always make another."""
    if x.dtype != dtype:
        x = x.to(dtype)
    if layout is None or x.is_contiguous(memory_format=layout):
        return x
    return x.contiguous(memory_format=layout)
