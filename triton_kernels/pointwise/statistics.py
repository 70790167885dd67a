"""Mean and variance of each channel, in one launch that reads z once, for a BatchNorm in training mode.

A program sums z - shift and its square, where shift is the mean of the channel's values in its first step: cancellation
stays small whatever the overall mean is, one outlier among the first values does little, and a value takes three
instructions and no division. Lanes and programs are combined as mean and M2 (welford.py).
Source: Chan, Golub and LeVeque (1983), section 3, shifted data.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import check_device, launch
from ..welford import variance
from .operands import accumulator, describe
from .reduction import arrive_last, block_channels, combine_partials, step_indices, store_partial
from .reduction_plan import SIZES, reduction_plan, workspace


@triton.jit
def finish_statistics(
    partial_ptr, mean_ptr, var_ptr, block, tiles, splits, channels, pixels,
    LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Stores mean and variance of a block of channels, combined from the partial results of all programs."""
    channel = block_channels(block, LAYOUT, BLOCK_ROWS, BLOCK_COLS)
    count, mean, m2 = combine_partials(
        partial_ptr, channel, tiles, splits, channels, pixels, LAYOUT, BLOCK_ROWS, BLOCK_COLS, True, DTYPE
    )
    tl.store(mean_ptr + channel, mean, mask=channel < channels)
    tl.store(var_ptr + channel, variance(count, m2), mask=channel < channels)


@triton.jit
def load_step(
    z_ptr, tile, step, rows, cols, channels, LAYOUT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The values of a step, 0 outside the mask; the mask; and, as DTYPE, the mask along the reduced axis alone."""
    row, col, row_mask, col_mask = step_indices(tile, step, rows, cols, channels, LAYOUT, GROUP, BLOCK_ROWS, BLOCK_COLS)
    mask = row_mask[:, None] & col_mask[None, :]
    z = tl.load(z_ptr + row[:, None] * cols + col[None, :], mask=mask, other=0.0).to(DTYPE)
    AXIS: tl.constexpr = 1 if LAYOUT == "nchw" else 0
    return z, mask, tl.expand_dims(col_mask if LAYOUT == "nchw" else row_mask, 1 - AXIS).to(DTYPE)


@triton.jit(do_not_specialize=SIZES)
def statistics_kernel(
    z_ptr, mean_ptr, var_ptr, partial_ptr, arrived_ptr, rows, col_groups, channels, pixels, tiles, steps, splits,
    LAYOUT: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """mean and var, (channels,). GROUP, OFFSET: see forward.epilogue_kernel; tiles, steps, STAGES: see reduction.py."""
    DTYPE: tl.constexpr = tl.float64 if z_ptr.dtype.element_ty == tl.float64 else tl.float32
    AXIS: tl.constexpr = 1 if LAYOUT == "nchw" else 0
    cols = col_groups.to(OFFSET) * GROUP
    program = tl.program_id(0).to(OFFSET)
    tile, split = program % tiles, program // tiles
    z, mask, valid = load_step(z_ptr, tile, split, rows, cols, channels, LAYOUT, GROUP, BLOCK_ROWS, BLOCK_COLS, DTYPE)
    # A lane counts a value wherever its row (its column) exists: counts of masked channels do not matter.
    count = valid
    shift = tl.sum(z / tl.maximum(tl.sum(valid, AXIS), 1.0), AXIS, keep_dims=True)
    total = tl.where(mask, z - shift, 0.0)
    squares = total * total
    for step in tl.range(split + splits, steps, splits, num_stages=STAGES):
        z, mask, valid = load_step(
            z_ptr, tile, step, rows, cols, channels, LAYOUT, GROUP, BLOCK_ROWS, BLOCK_COLS, DTYPE
        )  # fmt: skip
        z = tl.where(mask, z - shift, 0.0)
        count += valid
        total += z
        squares = tl.fma(z, z, squares)
    mean = total / tl.maximum(count, 1.0)
    store_partial(
        partial_ptr, tl.broadcast_to(count, [BLOCK_ROWS, BLOCK_COLS]), shift + mean, tl.fma(total, -mean, squares),
        tile, split, tiles, splits, channels, pixels, LAYOUT, BLOCK_ROWS, BLOCK_COLS, True,
    )  # fmt: skip
    last, block, end = arrive_last(arrived_ptr, tile, tiles, splits, channels, LAYOUT, BLOCK_COLS)
    if last:
        while block < end:
            finish_statistics(
                partial_ptr, mean_ptr, var_ptr, block, tiles, splits, channels, pixels,
                LAYOUT, BLOCK_ROWS, BLOCK_COLS, DTYPE,
            )  # fmt: skip
            block += 1


def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """mean = sum(z) / n, var = sum((z - mean)^2) / n, with n values per channel

    z: (N, C, ...) fp16 | bf16 | fp32 | fp64, contiguous or channels_last.
    Returns: mean, var: (C,) fp32, or fp64 for an fp64 z, computed in that type; zeros if z is empty.
    Raises: TypeError, ValueError if z is not as above; RuntimeError if z is not on CUDA.
    Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance (1983); biased as torch.nn.BatchNorm2d
        normalizes with it.
    """
    view = describe("z", z)
    mean, var = (torch.empty(view.channels, dtype=accumulator(z), device=z.device) for _ in range(2))
    if z.numel() == 0:
        return mean.zero_(), var.zero_()
    check_device("z", z, statistics_kernel)
    plan = reduction_plan(statistics_kernel, view, z.device)
    launch(plan, z.device, (z, mean, var, *workspace(plan, mean)))
    return mean, var
