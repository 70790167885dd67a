"""Mean and variance of each channel of a tensor, in one launch and one read: for a BatchNorm that trains.

A program sums z - shift and its square, where shift is the mean of its first step's values of the channel: what cancels
stays small whatever the mean of all is, one outlier among the first values does little, and a value takes three
instructions and no division. Lanes and programs are joined by mean and M2 (moments.py).
Source: Chan, Golub and LeVeque (1983), section 3, shifted data.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import check_device, launch
from ..welford import variance
from .operands import accumulator, describe
from .reduction import collect, collected, last_arrives, leave, position
from .reduction_plan import SIZES, reduction_plan, workspace


@triton.jit
def finish_statistics(
    partial_ptr, mean_ptr, var_ptr, block, tiles, shares, channels, pixels,
    LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Mean and variance of a block of channels out of what all programs left."""
    channel = collected(block, LAYOUT, BLOCK_ROWS, BLOCK_COLS)
    count, mean, m2 = collect(
        partial_ptr, channel, tiles, shares, channels, pixels, LAYOUT, BLOCK_ROWS, BLOCK_COLS, True, DTYPE
    )
    tl.store(mean_ptr + channel, mean, mask=channel < channels)
    tl.store(var_ptr + channel, variance(count, m2), mask=channel < channels)


@triton.jit
def load_step(
    z_ptr, tile, step, rows, cols, channels, LAYOUT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The values of a step, 0 where there is none; where there are; and 1 for each row (column) that exists."""
    row, col, row_there, col_there = position(tile, step, rows, cols, channels, LAYOUT, GROUP, BLOCK_ROWS, BLOCK_COLS)
    mask = row_there[:, None] & col_there[None, :]
    z = tl.load(z_ptr + row[:, None] * cols + col[None, :], mask=mask, other=0.0).to(DTYPE)
    AXIS: tl.constexpr = 1 if LAYOUT == "planes" else 0
    return z, mask, tl.expand_dims(col_there if LAYOUT == "planes" else row_there, 1 - AXIS).to(DTYPE)


@triton.jit(do_not_specialize=SIZES)
def statistics_kernel(
    z_ptr, mean_ptr, var_ptr, partial_ptr, arrived_ptr, rows, col_groups, channels, pixels, tiles, steps, shares,
    LAYOUT: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """mean and var, (channels,). GROUP, OFFSET: as in pointwise.epilogue_kernel; the walk, STAGES: see reduction.py."""
    DTYPE: tl.constexpr = tl.float64 if z_ptr.dtype.element_ty == tl.float64 else tl.float32
    AXIS: tl.constexpr = 1 if LAYOUT == "planes" else 0
    cols = col_groups.to(OFFSET) * GROUP
    program = tl.program_id(0).to(OFFSET)
    tile, share = program % tiles, program // tiles
    z, mask, there = load_step(z_ptr, tile, share, rows, cols, channels, LAYOUT, GROUP, BLOCK_ROWS, BLOCK_COLS, DTYPE)
    # a lane has a value wherever its row (its column) exists: the channels that don't exist have any number of values
    count = there
    shift = tl.sum(z / tl.maximum(tl.sum(there, AXIS), 1.0), AXIS, keep_dims=True)
    total = tl.where(mask, z - shift, 0.0)
    squares = total * total
    for step in tl.range(share + shares, steps, shares, num_stages=STAGES):
        z, mask, there = load_step(
            z_ptr, tile, step, rows, cols, channels, LAYOUT, GROUP, BLOCK_ROWS, BLOCK_COLS, DTYPE
        )  # fmt: skip
        z = tl.where(mask, z - shift, 0.0)
        count += there
        total += z
        squares = tl.fma(z, z, squares)
    mean = total / tl.maximum(count, 1.0)
    leave(
        partial_ptr, tl.broadcast_to(count, [BLOCK_ROWS, BLOCK_COLS]), shift + mean, tl.fma(total, -mean, squares),
        tile, share, tiles, shares, channels, pixels, LAYOUT, BLOCK_ROWS, BLOCK_COLS, True,
    )  # fmt: skip
    last, block, end = last_arrives(arrived_ptr, tile, tiles, shares, channels, LAYOUT, BLOCK_COLS)
    if last:
        while block < end:
            finish_statistics(
                partial_ptr, mean_ptr, var_ptr, block, tiles, shares, channels, pixels,
                LAYOUT, BLOCK_ROWS, BLOCK_COLS, DTYPE,
            )  # fmt: skip
            block += 1


def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """mean = sum(z) / n, var = sum((z - mean)^2) / n, n the number of values of a channel

    z: (N, C, ...) fp16 | bf16 | fp32 | fp64, contiguous or channels_last.
    Returns: mean, var: (C,) fp32, fp64 of fp64, computed in that type; zeros where z has no values.
    Raises: TypeError, ValueError on a z of another kind; RuntimeError on a device without a kernel.
    Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance (1983); biased as torch.nn.BatchNorm2d
        normalises with it.
    """
    view = describe("z", z)
    mean, var = (torch.empty(view.channels, dtype=accumulator(z), device=z.device) for _ in range(2))
    if z.numel() == 0:
        return mean.zero_(), var.zero_()
    check_device("z", z, statistics_kernel)
    plan = reduction_plan(statistics_kernel, view, z.device)
    launch(plan, z.device, (z, mean, var, *workspace(plan, mean)))
    return mean, var
