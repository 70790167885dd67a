"""Per-channel sums behind the gradients of BatchNorm and slopes, in one launch that reads grad and z once."""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..epilogue import divide, square_root
from ..launch import check_device, launch
from ..vectors import load_channels, load_vector
from .elements import gradients, nchw_index
from .operands import accumulator, describe, epilogue_operands, in_layout_of, residual_before
from .reduction import arrive_last, block_channels, combine_partials, step_indices, store_partial, tile_channels
from .reduction_plan import SIZES, reduction_plan, workspace

if TYPE_CHECKING:
    from ...core.spec import Epilogue


@triton.jit
def finish_sums(
    partial_ptr, sums_ptr, var_ptr, eps, block, tiles, splits, channels, pixels,
    LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Stores the sums of a block of channels, combined from all programs; the second is divided by the deviation."""
    channel = block_channels(block, LAYOUT, BLOCK_ROWS, BLOCK_COLS)
    exists = channel < channels
    sum_du, weighted, slopes = combine_partials(
        partial_ptr, channel, tiles, splits, channels, pixels, LAYOUT, BLOCK_ROWS, BLOCK_COLS, False, DTYPE
    )
    if var_ptr is not None:
        var = load_vector(var_ptr, 1.0, channel, exists, DTYPE)
        weighted = divide(weighted, square_root(var + tl.full([1], eps, DTYPE)))
    tl.store(sums_ptr + channel, sum_du, mask=exists)
    tl.store(sums_ptr + channels + channel, weighted, mask=exists)
    tl.store(sums_ptr + 2 * channels + channel, slopes, mask=exists)


@triton.jit(do_not_specialize=["slope_stride", *SIZES])
def reduce_kernel(
    grad_ptr, z_ptr, residual_ptr, sums_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, seed_ptr,
    partial_ptr, arrived_ptr,
    eps: tl.float64, slope_value: tl.float64, slope_upper: tl.float64, dropout: tl.float64, keep_scale: tl.float64,
    slope_stride, rows, col_groups, channels, pixels, tiles, steps, splits,
    LAYOUT: tl.constexpr, SLOPE_KIND: tl.constexpr, DROPOUT: tl.constexpr,
    GROUP: tl.constexpr, OFFSET: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """sums = (sum(du), sum(du * (z - mean) / sqrt(var + eps)), sum(dy * u where u <= 0)), (3, channels).

    Pointers of the residual and of the epilogue's vectors may be None. The rest: see statistics_kernel.
    """
    DTYPE: tl.constexpr = tl.float64 if z_ptr.dtype.element_ty == tl.float64 else tl.float32
    AXIS: tl.constexpr = 1 if LAYOUT == "nchw" else 0
    cols = col_groups.to(OFFSET) * GROUP
    program = tl.program_id(0).to(OFFSET)
    tile, split = program % tiles, program // tiles
    channel = tile_channels(tile, pixels, LAYOUT, BLOCK_ROWS, BLOCK_COLS)
    scale, shift, slope = load_channels(
        mean_ptr, var_ptr, gamma_ptr, beta_ptr, eps, slope_ptr, slope_value, slope_stride,
        channel, channel < channels, AXIS, DTYPE,
    )  # fmt: skip
    mean = tl.expand_dims(load_vector(mean_ptr, 0.0, channel, channel < channels, DTYPE), AXIS)
    sum_du = tl.full([BLOCK_ROWS, BLOCK_COLS], 0.0, DTYPE)
    weighted, slopes = sum_du, sum_du
    for step in tl.range(split, steps, splits, num_stages=STAGES):
        row, col, row_mask, col_mask = step_indices(
            tile, step, rows, cols, channels, LAYOUT, GROUP, BLOCK_ROWS, BLOCK_COLS
        )  # fmt: skip
        mask = row_mask[:, None] & col_mask[None, :]
        z, dy, du, u = gradients(
            grad_ptr, z_ptr, residual_ptr, seed_ptr, row[:, None] * cols + col[None, :],
            nchw_index(row, col, cols, pixels, LAYOUT), mask, scale, shift, slope, slope_upper, dropout, keep_scale,
            mean_ptr is not None or beta_ptr is not None, SLOPE_KIND, DROPOUT, DTYPE,
        )  # fmt: skip
        du = tl.where(mask, du, 0.0)  # dy is 0 there, but a slope may be infinite
        sum_du += du
        if mean_ptr is not None:
            weighted = tl.fma(du, z - mean, weighted)
        if SLOPE_KIND == "tensor":
            slopes += tl.where(mask & ~(u > 0), dy * u, 0.0)
    store_partial(
        partial_ptr, sum_du, weighted, slopes, tile, split, tiles, splits,
        channels, pixels, LAYOUT, BLOCK_ROWS, BLOCK_COLS, False,
    )  # fmt: skip
    last, block, end = arrive_last(arrived_ptr, tile, tiles, splits, channels, LAYOUT, BLOCK_COLS)
    if last:
        while block < end:
            finish_sums(
                partial_ptr, sums_ptr, var_ptr, eps, block, tiles, splits, channels, pixels,
                LAYOUT, BLOCK_ROWS, BLOCK_COLS, DTYPE,
            )  # fmt: skip
            block += 1


def epilogue_reduce(grad: Tensor, z: Tensor, epilogue: "Epilogue") -> Tensor:
    """sum(du), sum(du * (z - mean) / sqrt(var + eps)), sum(dy * u where u <= 0), each over all axes but the channels

    dy = grad * keep, du = dy * dact(u)/du, with u and keep of forward.epilogue.
    grad: (N, C, ...) fp16 | bf16 | fp32 | fp64, the gradient of y, with the dtype and shape of z; copied unless it has
        z's strides.
    Returns: (3, C) fp32, or fp64 for an fp64 z: the gradients of beta, gamma and a tensor of slopes, per channel. The
        second is 0 without a mean, the third is 0 unless slope_kind is "tensor".
    Raises: TypeError, ValueError if z, grad, residual or dropout is not as above; RuntimeError if z is not on CUDA.
    Source: Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3; He et al. 2015 (arXiv:1502.01852), section 2.1.
    """
    view = describe("z", z)
    grad = in_layout_of(z, "grad", grad)
    residual = residual_before(epilogue, z)
    vectors, scalars = epilogue_operands(epilogue)
    sums = torch.empty((3, view.channels), dtype=accumulator(z), device=z.device)
    if z.numel() == 0:
        return sums.zero_()
    check_device("z", z, reduce_kernel)
    constants = {"SLOPE_KIND": epilogue.slope_kind, "DROPOUT": epilogue.dropout > 0}
    plan = reduction_plan(reduce_kernel, view, z.device, **constants)
    launch(plan, z.device, (grad, z, residual, sums, *vectors, *workspace(plan, sums)), scalars)
    return sums
