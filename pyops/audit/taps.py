"""Taps: the positions of its input that an operator reads for positions of its output, along one axis.

A `Taps` takes output positions, (n,) int64, and returns pairs as two tensors: the index of an output position (into the
n given ones), and an input position that it reads. Maps are taken as unbounded: nothing is cut off at a border, so that
positions in the padding are negative or beyond the size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Taps = Callable[[Tensor], tuple[Tensor, Tensor]]


def window(kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Taps:
    """o * stride - padding + j * dilation, j < kernel: convolution, pooling, slice (kernel 1) and pixel_unshuffle."""
    offsets = torch.arange(kernel) * dilation - padding
    return lambda positions: _pairs(positions[:, None] * stride + offsets)


def transposed(kernel: int, stride: int, padding: int, dilation: int) -> Taps:
    """Those i where o = i * stride - padding + j * dilation for some j < kernel: transposed convolution."""

    def taps(positions: Tensor) -> tuple[Tensor, Tensor]:
        scaled = positions[:, None] + padding - torch.arange(kernel) * dilation
        which, offset = (scaled % stride == 0).nonzero(as_tuple=True)
        return which, scaled[which, offset] // stride

    return taps


def repeated(factor: int) -> Taps:
    """floor(o / factor): pixel_shuffle."""
    return lambda positions: _pairs((positions // factor)[:, None])


def nearest(size: int, output: int, exact: bool = False) -> Taps:
    """floor(o * size / output), or with exact floor((o + 1/2) * size / output)."""
    if exact:
        return lambda positions: _pairs(((2 * positions + 1) * size // (2 * output))[:, None])
    return lambda positions: _pairs((positions * size // output)[:, None])


def interpolated(size: int, output: int, reach: int, align_corners: bool) -> Taps:
    """The 2 * reach positions around (o + 1/2) * size / output - 1/2, or the one there: bilinear (1), bicubic (2).

    With align_corners around o * (size - 1) / (output - 1).
    """

    def taps(positions: Tensor) -> tuple[Tensor, Tensor]:
        if align_corners:
            scaled, unit = positions * (size - 1), max(output - 1, 1)
        else:
            scaled, unit = (2 * positions + 1) * size - output, 2 * output
        first, offsets = scaled // unit, torch.arange(1 - reach, reach + 1)
        read = (scaled % unit != 0)[:, None] | (offsets == 0)  # at an input position the weights of all others are 0
        which, index = read.nonzero(as_tuple=True)
        return which, first[which] + offsets[index]

    return taps


def adaptive(size: int, output: int) -> Taps:
    """From floor(o * size / output) to ceil((o + 1) * size / output): adaptive pooling."""

    def taps(positions: Tensor) -> tuple[Tensor, Tensor]:
        first, last = positions * size // output, -((positions + 1) * -size // output)
        counts = last - first
        which = torch.repeat_interleave(torch.arange(len(positions)), counts)
        within = torch.arange(len(which)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        return which, first[which] + within

    return taps


def inside(taps: Taps, size: int, output: int) -> float:
    """The fraction of all taps of an output axis that fall inside the input's axis, and not in the padding."""
    _, positions = taps(torch.arange(output))
    return ((positions >= 0) & (positions < size)).double().mean().item()


def _pairs(positions: Tensor) -> tuple[Tensor, Tensor]:
    count, taps = positions.shape
    return torch.arange(count).repeat_interleave(taps), positions.flatten()
