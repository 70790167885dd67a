"""Device functions that reduce whole tensors to three values per channel, in one launch and in a fixed order.

A program takes one tile of channels and every splits-th step over the other axis. It accumulates lane by lane, reduces
the lanes at its end and stores the partial result in a workspace; the last program to arrive combines all of them.

    layout        a tile                    a step
    "nhwc"        columns: channels         rows
    "nchw"        rows: channels            columns of one image
    "nchw_flat"   columns                   rows

In "nchw_flat" a channel's columns may span several tiles: a program stores a partial result for each channel that it
touches, and the last program of the whole launch combines them. The three values are sums, or count, mean and M2
(MOMENTS). Nothing is added atomically. STAGES: pipeline stages of the loop over the steps, all but one of them in
flight to shared memory; 1 disables the pipeline.
"""

import triton
import triton.language as tl

from ..counters import arrive
from ..welford import combine, merge


@triton.jit
def combine_pair(a, b, c, x, y, z, MOMENTS: tl.constexpr):
    """The three values of two parts together."""
    if MOMENTS:
        a, b, c = combine(a, b, c, x, y, z)
    else:
        a, b, c = a + x, b + y, c + z
    return a, b, c


@triton.jit
def reduce_lanes(a, b, c, AXIS: tl.constexpr, MOMENTS: tl.constexpr):
    """The three values of all lanes along an axis."""
    if MOMENTS:
        a, b, c = merge(a, b, c, AXIS)
    else:
        a, b, c = tl.sum(a, AXIS), tl.sum(b, AXIS), tl.sum(c, AXIS)
    return a, b, c


@triton.jit
def tile_channels(tile, pixels, LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """The channel of each row ("nchw") or column of a tile."""
    if LAYOUT == "nchw":
        return tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    elif LAYOUT == "nhwc":
        return tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    else:
        return (tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)) // pixels


@triton.jit
def step_indices(
    tile, step, rows, cols, channels,
    LAYOUT: tl.constexpr, GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Row and column indices of a tile at one step, and the mask of each.

    Masked indices are 0: an asynchronous copy may access an address that its mask leaves out (main_loop.load_pointers).
    """
    if LAYOUT == "nchw":
        across = tl.cdiv(cols, BLOCK_COLS)
        channel = tile_channels(tile, 1, LAYOUT, BLOCK_ROWS, BLOCK_COLS)
        row, col = step // across * channels + channel, step % across * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
        row_mask, col_mask = (channel < channels) & (row < rows), col < cols
    else:
        row, col = step * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
        row_mask, col_mask = row < rows, col < cols
    col = tl.max_contiguous(tl.multiple_of(tl.where(col_mask, col, 0), GROUP), GROUP)  # cols has whole groups
    return tl.where(row_mask, row, 0), col, row_mask, col_mask


@triton.jit
def store_partial(
    partial_ptr, a, b, c, tile, split, tiles, splits, channels, pixels,
    LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, MOMENTS: tl.constexpr,
):  # fmt: skip
    """Reduces the lanes of a tile and stores the partial result where `combine_partials` reads it."""
    a, b, c = reduce_lanes(a, b, c, 1 if LAYOUT == "nchw" else 0, MOMENTS)
    channel = tile_channels(tile, pixels, LAYOUT, BLOCK_ROWS, BLOCK_COLS)
    if LAYOUT == "nchw_flat":
        slots = BLOCK_COLS // pixels + 2
        ptr, size = partial_ptr + (split * tiles + tile) * slots, splits * tiles * slots
        first, slot = tile * BLOCK_COLS // pixels, tile * 0
        while first + slot < tl.minimum(channels, ((tile + 1) * BLOCK_COLS - 1) // pixels + 1):
            mine = channel == first + slot
            x, y, z = tl.where(mine, a, 0.0)[None, :], tl.where(mine, b, 0.0)[None, :], tl.where(mine, c, 0.0)[None, :]
            x, y, z = reduce_lanes(x, y, z, 1, MOMENTS)
            at = ptr + slot + tl.arange(0, 1)
            tl.store(at, x)
            tl.store(at + size, y)
            tl.store(at + 2 * size, z)
            slot += 1
    else:
        at, size = partial_ptr + split * channels + channel, splits * channels
        if LAYOUT == "nchw":
            at = partial_ptr + channel * splits + split
        tl.store(at, a, mask=channel < channels)
        tl.store(at + size, b, mask=channel < channels)
        tl.store(at + 2 * size, c, mask=channel < channels)


@triton.jit
def block_channels(block, LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """The channels of a block that is combined at once: those of a tile; in "nchw_flat" a quarter of a tile's width.

    There the partial results of a channel lie anywhere: their 64-bit offsets and the divisions for them fill the
    registers.
    """
    if LAYOUT == "nchw_flat":
        return block * (BLOCK_COLS // 4) + tl.arange(0, BLOCK_COLS // 4)
    else:
        return tile_channels(block, 1, LAYOUT, BLOCK_ROWS, BLOCK_COLS)


@triton.jit
def arrive_last(arrived_ptr, tile, tiles, splits, channels, LAYOUT: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """True in the program that combines, with the first and the end of its range of blocks of channels.

    In "nchw_flat" that is the last program of the launch, with all blocks; else the last of each tile, with its block.
    """
    first, end, programs = tile, tile + 1, splits
    if LAYOUT == "nchw_flat":
        first, end, programs = tile * 0, tl.cdiv(channels, BLOCK_COLS // 4) + tile * 0, splits * tiles
    return arrive(arrived_ptr + first, programs), first, end


@triton.jit
def combine_partials(
    partial_ptr, channel, tiles, splits, channels, pixels, LAYOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, MOMENTS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The three values of these channels, combined from all partial results.

    Partial results are (3, parts, channels), in "nchw" (3, channels, parts).
    A part is a split; in "nchw_flat" a split of one of the tiles that the channel lies in, where each tile has
    BLOCK_COLS // pixels + 2 slots for its channels. Parts are taken a tile's side at a time, lane by lane, in order.
    """
    AXIS: tl.constexpr = 1 if LAYOUT == "nchw" else 0
    channel = tl.expand_dims(channel, AXIS)
    spans = (pixels + BLOCK_COLS - 2) // BLOCK_COLS + 1 if LAYOUT == "nchw_flat" else 1
    width: tl.constexpr = BLOCK_COLS // 4 if LAYOUT == "nchw_flat" else BLOCK_COLS
    a = tl.full([BLOCK_ROWS, width], 0.0, DTYPE)
    b, c, done = a, a, splits * 0
    while done < splits * spans:
        part = done + tl.expand_dims(tl.arange(0, BLOCK_COLS if LAYOUT == "nchw" else BLOCK_ROWS), 1 - AXIS)
        mask = (channel < channels) & (part < splits * spans)
        if LAYOUT == "nchw_flat":
            slots = BLOCK_COLS // pixels + 2
            tile = channel * pixels // BLOCK_COLS + part % spans
            mask = mask & (tile * BLOCK_COLS < (channel + 1) * pixels)
            at, size = (part // spans * tiles + tile) * slots + channel - tile * BLOCK_COLS // pixels, tiles * slots
        else:
            at, size = part * channels + channel, channels
            if LAYOUT == "nchw":
                at = channel * splits + part
        ptr = partial_ptr + at
        x = tl.load(ptr, mask=mask, other=0.0, cache_modifier=".cg")
        y = tl.load(ptr + splits * size, mask=mask, other=0.0, cache_modifier=".cg")
        z = tl.load(ptr + 2 * splits * size, mask=mask, other=0.0, cache_modifier=".cg")
        a, b, c = combine_pair(a, b, c, x, y, z, MOMENTS)
        done += BLOCK_COLS if LAYOUT == "nchw" else BLOCK_ROWS
    return reduce_lanes(a, b, c, AXIS, MOMENTS)
