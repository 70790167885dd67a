"""Tiles of a dilated convolution as an implicit GEMM: M is output channels, N output pixels, K (tap, input channel).

At tap (row, column) of the kernel, output pixel (n, h, w) reads

    x[n, h * stride - padding + row * dilation, w * stride - padding + column * dilation]        zero outside x.

With pointers the pixels of a tile are consecutive. With tensor descriptors they are a box of images, rows and columns
that a tap shifts as a whole: TMA reads zeros outside x and does not write outside y.
"""

from typing import NamedTuple

import triton
import triton.language as tl

Pair = tuple[int, int]


class Layer(NamedTuple):
    """Compile-time constants of a convolution. Channels are those of one group.

    multiplier: output channels per input channel of a depthwise convolution, whose channels all count as one group; 0
    for any other convolution.
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
    """Compile-time constants of a tile. layout: "nhwc" or "nchw"; box: None for pointers.

    split: several programs split its reduction. flat_k: a step is k consecutive entries of the axis (tap, channel),
    else k channels of one tap. offset: the integer type of offsets. Functions take the whole tuple: Triton 3.6 does not
    accept a string that was read out of a constant as an argument.
    """

    layout: str
    m: int
    n: int
    k: int
    split: bool
    box: tuple[int, int, int] | None
    flat_k: bool
    precision: str
    offset: tl.dtype


@triton.jit
def box_origin(tile, sizes, T: tl.constexpr):
    """Image, row and column of the first output pixel of a box."""
    across, down = tl.cdiv(sizes[4], T.box[2]), tl.cdiv(sizes[3], T.box[1])
    return tile // (across * down) * T.box[0], tile // across % down * T.box[1], tile % across * T.box[2]


@triton.jit
def pixels(tile, sizes, T: tl.constexpr):
    """Image, row and column of each output pixel of a tile, and the mask of those that exist."""
    n = tl.arange(0, T.n)
    if T.box is None:
        pixel = tile.to(T.offset) * T.n + n
        image, row, column = pixel // sizes[4] // sizes[3], pixel // sizes[4] % sizes[3], pixel % sizes[4]
    else:
        image, row, column = box_origin(tile, sizes, T)
        image = (image + n // (T.box[1] * T.box[2])).to(T.offset)
        row, column = row + n // T.box[2] % T.box[1], column + n % T.box[2]
    return image, row, column, (image < sizes[0]) & (row < sizes[3]) & (column < sizes[4])


@triton.jit
def nchw_offset(image, row, column, channel, height, width, channels):
    """The offset of an element in a contiguous tensor; the arguments broadcast."""
    return ((image * channels + channel) * height + row) * width + column


@triton.jit
def element_offset(image, row, column, channel, height, width, channels, T: tl.constexpr):
    """The offset of an element in a tensor of the tile's layout; the arguments broadcast."""
    if T.layout == "nhwc":
        return ((image * height + row) * width + column) * channels + channel
    else:
        return nchw_offset(image, row, column, channel, height, width, channels)


@triton.jit
def load_tile(x, sizes, offset, mask, first_m, tile, T: tl.constexpr):
    """The tile (m, n) of a tensor with the shape of y."""
    if T.box is None:
        return tl.load(x + offset, mask=mask)
    else:
        image, row, column = box_origin(tile, sizes, T)
        return tl.trans(tl.reshape(x.load([image, row, column, first_m]), [T.n, T.m]))


@triton.jit
def store_tile(y, value, sizes, offset, mask, first_m, tile, T: tl.constexpr):
    """Stores the tile (m, n), rounded once to the dtype of y."""
    if T.box is None:
        tl.store(y + offset, value.to(y.dtype.element_ty), mask=mask)
    else:
        image, row, column = box_origin(tile, sizes, T)
        box = tl.reshape(tl.trans(value.to(y.dtype)), [T.box[0], T.box[1], T.box[2], T.m])
        y.store([image, row, column, first_m], box)
