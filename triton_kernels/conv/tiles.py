"""Tiles of a dilated convolution as a matrix product: output channels by output pixels, summed over taps and channels.

The input of output pixel (n, h, w) at a tap (row, column) of the kernel is

    x[n, h * stride - padding + row * dilation, w * stride - padding + column * dilation]        zero outside of x.

A tile's pixels are a run of them, addressed by pointers; or, with tensor descriptors, a box of images, rows and columns
that a tap shifts as a whole: what lies outside of x is read as zero, what lies outside of y is not written.
"""

from typing import NamedTuple

import triton
import triton.language as tl

Pair = tuple[int, int]


class Layer(NamedTuple):
    """What the compiler knows of a convolution: all that does not change from call to call. Channels of one group.

    multiplier: 0; or of a depthwise convolution, which is no matrix product: output channels of each input channel, and
    all of them count as one group.
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    multiplier: int = 0


class Tile(NamedTuple):
    """What it knows of the tile: layout "last" (channels_last) or "planes" (NCHW); box: None for pointers.

    split: whether several programs share its reduction. flat: a step is k places of the axis (tap, channel), else k
    channels of one tap. offset: the integers of addresses. Functions take all of it: Triton 3.6 does not take a string
    that was read out of a constant as an argument.
    """

    layout: str
    m: int
    n: int
    k: int
    split: bool
    box: tuple[int, int, int] | None
    flat: bool
    precision: str
    offset: tl.dtype


@triton.jit
def corner(tile, sizes, T: tl.constexpr):
    """Image, row and column at which a box of output pixels begins."""
    across, down = tl.cdiv(sizes[4], T.box[2]), tl.cdiv(sizes[3], T.box[1])
    return tile // (across * down) * T.box[0], tile // across % down * T.box[1], tile % across * T.box[2]


@triton.jit
def pixels(tile, sizes, T: tl.constexpr):
    """Image, row and column of each output pixel of a tile, and whether it exists."""
    inside = tl.arange(0, T.n)
    if T.box is None:
        pixel = tile.to(T.offset) * T.n + inside
        image, row, column = pixel // sizes[4] // sizes[3], pixel // sizes[4] % sizes[3], pixel % sizes[4]
    else:
        image, row, column = corner(tile, sizes, T)
        image = (image + inside // (T.box[1] * T.box[2])).to(T.offset)
        row, column = row + inside // T.box[2] % T.box[1], column + inside % T.box[2]
    return image, row, column, (image < sizes[0]) & (row < sizes[3]) & (column < sizes[4])


@triton.jit
def planes(image, row, column, channel, height, width, channels):
    """Where an element lies in a contiguous tensor; the arguments broadcast."""
    return ((image * channels + channel) * height + row) * width + column


@triton.jit
def place(image, row, column, channel, height, width, channels, T: tl.constexpr):
    """Where an element lies in a tensor of the tile's layout; the arguments broadcast."""
    if T.layout == "last":
        return ((image * height + row) * width + column) * channels + channel
    else:
        return planes(image, row, column, channel, height, width, channels)


@triton.jit
def load_tile(x, sizes, offset, there, first_m, tile, T: tl.constexpr):
    """(m, n) of a tensor of y's shape."""
    if T.box is None:
        return tl.load(x + offset, mask=there)
    else:
        image, row, column = corner(tile, sizes, T)
        return tl.trans(tl.reshape(x.load([image, row, column, first_m]), [T.n, T.m]))


@triton.jit
def store_tile(y, value, sizes, offset, there, first_m, tile, T: tl.constexpr):
    """Rounds once, to y's type."""
    if T.box is None:
        tl.store(y + offset, value.to(y.dtype.element_ty), mask=there)
    else:
        image, row, column = corner(tile, sizes, T)
        box = tl.reshape(tl.trans(value.to(y.dtype)), [T.box[0], T.box[1], T.box[2], T.m])
        y.store([image, row, column, first_m], box)
