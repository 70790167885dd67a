"""Three numbers a channel out of whole tensors, in one launch and always in the same order: what the reductions share.

A program has one tile of channels and every shares-th step over all else. It keeps the numbers lane by lane, folds the
lanes at its end and leaves the result in a workspace; the last program to arrive there puts those of all together.

    layout        a tile                    a step
    "last"        columns: channels         rows
    "planes"      rows: channels            columns of one image
    "flat"        columns                   rows

In "flat" a channel's columns may lie in several tiles: a program leaves numbers for each channel that it touches, and
the last program of all collects them. Numbers: sums, or number, mean and M2 (MOMENTS). Nothing is added atomically.
STAGES: of the pipeline over the steps, of which all but one are on their way to shared memory; 1: none are.
"""

import triton
import triton.language as tl

from ..counters import arrive
from ..welford import combine, merge


@triton.jit
def join(a, b, c, x, y, z, MOMENTS: tl.constexpr):
    """Two parts' numbers as one."""
    if MOMENTS:
        a, b, c = combine(a, b, c, x, y, z)
    else:
        a, b, c = a + x, b + y, c + z
    return a, b, c


@triton.jit
def fold(a, b, c, AXIS: tl.constexpr, MOMENTS: tl.constexpr):
    """Those of all lanes along an axis."""
    if MOMENTS:
        a, b, c = merge(a, b, c, AXIS)
    else:
        a, b, c = tl.sum(a, AXIS), tl.sum(b, AXIS), tl.sum(c, AXIS)
    return a, b, c


@triton.jit
def channels_of(tile, pixels, LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """The channel of each of a tile's rows ("planes") or columns."""
    if LAYOUT == "planes":
        return tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    elif LAYOUT == "last":
        return tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    else:
        return (tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)) // pixels


@triton.jit
def position(
    tile, step, rows, cols, channels,
    LAYOUT: tl.constexpr, GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """The rows and columns of a tile at one of its steps, and which of each exist. The others are 0: an asynchronous
    copy may look at an address that its mask leaves out (products.load_run)."""
    if LAYOUT == "planes":
        across = tl.cdiv(cols, BLOCK_COLS)
        channel = channels_of(tile, 1, LAYOUT, BLOCK_ROWS, BLOCK_COLS)
        row, col = step // across * channels + channel, step % across * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
        row_there, col_there = (channel < channels) & (row < rows), col < cols
    else:
        row, col = step * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
        row_there, col_there = row < rows, col < cols
    col = tl.max_contiguous(tl.multiple_of(tl.where(col_there, col, 0), GROUP), GROUP)  # cols has whole groups
    return tl.where(row_there, row, 0), col, row_there, col_there


@triton.jit
def leave(
    partial_ptr, a, b, c, tile, share, tiles, shares, channels, pixels,
    LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, MOMENTS: tl.constexpr,
):  # fmt: skip
    """Folds the lanes of a tile and stores what becomes of them; `collect` says where."""
    a, b, c = fold(a, b, c, 1 if LAYOUT == "planes" else 0, MOMENTS)
    channel = channels_of(tile, pixels, LAYOUT, BLOCK_ROWS, BLOCK_COLS)
    if LAYOUT == "flat":
        slots = BLOCK_COLS // pixels + 2
        ptr, size = partial_ptr + (share * tiles + tile) * slots, shares * tiles * slots
        first, slot = tile * BLOCK_COLS // pixels, tile * 0
        while first + slot < tl.minimum(channels, ((tile + 1) * BLOCK_COLS - 1) // pixels + 1):
            mine = channel == first + slot
            x, y, z = tl.where(mine, a, 0.0)[None, :], tl.where(mine, b, 0.0)[None, :], tl.where(mine, c, 0.0)[None, :]
            x, y, z = fold(x, y, z, 1, MOMENTS)
            at = ptr + slot + tl.arange(0, 1)
            tl.store(at, x)
            tl.store(at + size, y)
            tl.store(at + 2 * size, z)
            slot += 1
    else:
        at, size = partial_ptr + share * channels + channel, shares * channels
        if LAYOUT == "planes":
            at = partial_ptr + channel * shares + share
        tl.store(at, a, mask=channel < channels)
        tl.store(at + size, b, mask=channel < channels)
        tl.store(at + 2 * size, c, mask=channel < channels)


@triton.jit
def collected(block, LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """The channels of a block that is collected at once: those of a tile, in "flat" a quarter of its width.

    There a channel's pieces lie anywhere: their 64-bit places, and what is divided to find them, fill the registers.
    """
    if LAYOUT == "flat":
        return block * (BLOCK_COLS // 4) + tl.arange(0, BLOCK_COLS // 4)
    else:
        return channels_of(block, 1, LAYOUT, BLOCK_ROWS, BLOCK_COLS)


@triton.jit
def last_arrives(arrived_ptr, tile, tiles, shares, channels, LAYOUT: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """Whether this program is the one to collect, and then which blocks of channels: from the first to before the end.

    Of "flat" all blocks, of the others that of the tile.
    """
    first, end, programs = tile, tile + 1, shares
    if LAYOUT == "flat":
        first, end, programs = tile * 0, tl.cdiv(channels, BLOCK_COLS // 4) + tile * 0, shares * tiles
    return arrive(arrived_ptr + first, programs), first, end


@triton.jit
def collect(
    partial_ptr, channel, tiles, shares, channels, pixels, LAYOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, MOMENTS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The numbers of these channels out of what all programs left: (3, pieces, channels), in "planes" transposed.

    A piece is a share; in "flat" a share of one of the tiles that the channel lies in, where each tile has so many
    slots for its channels. Pieces are taken a tile's side at a time, lane by lane, in their order.
    """
    AXIS: tl.constexpr = 1 if LAYOUT == "planes" else 0
    channel = tl.expand_dims(channel, AXIS)
    spans = (pixels + BLOCK_COLS - 2) // BLOCK_COLS + 1 if LAYOUT == "flat" else 1
    width: tl.constexpr = BLOCK_COLS // 4 if LAYOUT == "flat" else BLOCK_COLS
    a = tl.full([BLOCK_ROWS, width], 0.0, DTYPE)
    b, c, done = a, a, shares * 0
    while done < shares * spans:
        piece = done + tl.expand_dims(tl.arange(0, BLOCK_COLS if LAYOUT == "planes" else BLOCK_ROWS), 1 - AXIS)
        there = (channel < channels) & (piece < shares * spans)
        if LAYOUT == "flat":
            slots = BLOCK_COLS // pixels + 2
            tile = channel * pixels // BLOCK_COLS + piece % spans
            there = there & (tile * BLOCK_COLS < (channel + 1) * pixels)
            at, size = (piece // spans * tiles + tile) * slots + channel - tile * BLOCK_COLS // pixels, tiles * slots
        else:
            at, size = piece * channels + channel, channels
            if LAYOUT == "planes":
                at = channel * shares + piece
        ptr = partial_ptr + at
        x = tl.load(ptr, mask=there, other=0.0, cache_modifier=".cg")
        y = tl.load(ptr + shares * size, mask=there, other=0.0, cache_modifier=".cg")
        z = tl.load(ptr + 2 * shares * size, mask=there, other=0.0, cache_modifier=".cg")
        a, b, c = join(a, b, c, x, y, z, MOMENTS)
        done += BLOCK_COLS if LAYOUT == "planes" else BLOCK_ROWS
    return fold(a, b, c, AXIS, MOMENTS)
