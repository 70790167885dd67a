"""The gradient of the epilogue: reads grad, z and the residual once, writes each needed gradient once.

A BatchNorm with batch statistics needs the sums of `epilogue_reduce` first; `statistics` computes the batch statistics.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..epilogue import divide, square_root
from ..launch import check_device, launch
from ..vectors import load_channels, load_vector
from .configs import gradient_registers
from .elements import gradients, nchw_index
from .operands import describe, epilogue_operands, in_layout_of, pointwise_plan, residual_before
from .reduce import epilogue_reduce as epilogue_reduce
from .statistics import statistics as statistics

if TYPE_CHECKING:
    from ...core.spec import Epilogue


@triton.jit
def load_means(
    means_ptr, mean_ptr, var_ptr, eps, channels, channel, mask, AXIS: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """mean, means[0] and means[1] / sqrt(var + eps) of the channels; placeholders if means_ptr is None."""
    if means_ptr is None:
        zero = tl.full([1, 1], 0.0, DTYPE)
        return zero, zero, zero
    else:
        mean = load_vector(mean_ptr, 0.0, channel, mask, DTYPE)
        deviation = square_root(load_vector(var_ptr, 1.0, channel, mask, DTYPE) + tl.full([1], eps, DTYPE))
        mean_du = load_vector(means_ptr, 0.0, channel, mask, DTYPE)
        weighted = divide(load_vector(means_ptr + channels, 0.0, channel, mask, DTYPE), deviation)
        return tl.expand_dims(mean, AXIS), tl.expand_dims(mean_du, AXIS), tl.expand_dims(weighted, AXIS)


@triton.jit(do_not_specialize=["slope_stride", "rows", "col_groups", "channels", "pixels", "row_programs"])
def backward_kernel(
    grad_ptr, z_ptr, residual_ptr, dz_ptr, du_ptr, means_ptr,
    mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, seed_ptr,
    eps: tl.float64, slope_value: tl.float64, slope_upper: tl.float64, dropout: tl.float64, keep_scale: tl.float64,
    slope_stride, rows, col_groups, channels, pixels, row_programs,
    LAYOUT: tl.constexpr, SLOPE_KIND: tl.constexpr, DROPOUT: tl.constexpr,
    GROUP: tl.constexpr, OFFSET: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Stores dz and du, each if its pointer is not None. Programs and tiles are those of forward.epilogue_kernel.

    All pointers except grad_ptr and z_ptr may be None. residual_ptr: see elements.gradients.
    """
    DTYPE: tl.constexpr = tl.float64 if z_ptr.dtype.element_ty == tl.float64 else tl.float32
    AXIS: tl.constexpr = 1 if LAYOUT == "nchw" else 0
    cols = col_groups.to(OFFSET) * GROUP
    col_tiles = tl.cdiv(cols, BLOCK_COLS)
    program = tl.program_id(0).to(OFFSET)
    col = program % col_tiles * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    if LAYOUT != "nchw":
        channel = col if LAYOUT == "nhwc" else col // pixels
        scale, shift, slope = load_channels(
            mean_ptr, var_ptr, gamma_ptr, beta_ptr, eps, slope_ptr, slope_value, slope_stride,
            channel, col < cols, AXIS, DTYPE,
        )  # fmt: skip
        mean, mean_du, weighted = load_means(
            means_ptr, mean_ptr, var_ptr, eps, channels, channel, col < cols, AXIS, DTYPE
        )
    tile = program // col_tiles
    while tile < tl.cdiv(rows, BLOCK_ROWS):
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        if LAYOUT == "nchw":
            channel = row % channels
            scale, shift, slope = load_channels(
                mean_ptr, var_ptr, gamma_ptr, beta_ptr, eps, slope_ptr, slope_value, slope_stride,
                channel, row < rows, AXIS, DTYPE,
            )  # fmt: skip
            mean, mean_du, weighted = load_means(
                means_ptr, mean_ptr, var_ptr, eps, channels, channel, row < rows, AXIS, DTYPE
            )
        mask = (row < rows)[:, None] & (col < cols)[None, :]
        offset = row[:, None] * cols + col[None, :]
        z, _, du, _ = gradients(
            grad_ptr, z_ptr, residual_ptr, seed_ptr, offset, nchw_index(row, col, cols, pixels, LAYOUT), mask,
            scale, shift, slope, slope_upper, dropout, keep_scale,
            mean_ptr is not None or beta_ptr is not None, SLOPE_KIND, DROPOUT, DTYPE,
        )  # fmt: skip
        if du_ptr is not None:
            tl.store(du_ptr + offset, du.to(du_ptr.dtype.element_ty), mask=mask)
        if dz_ptr is not None:
            dz = du
            if means_ptr is not None:
                dz = tl.fma(z - mean, -weighted, du - mean_du)
            if mean_ptr is not None:
                dz = dz * scale
            tl.store(dz_ptr + offset, dz.to(dz_ptr.dtype.element_ty), mask=mask)
        tile += row_programs


def epilogue_backward(
    grad: Tensor, z: Tensor, means: Tensor | None, need_z: bool, need_residual: bool, epilogue: "Epilogue"
) -> tuple[Tensor, Tensor]:
    """dz = gamma / sqrt(var + eps) * (du - means[0] - (z - mean) / sqrt(var + eps) * means[1]), and du

    dy = grad * keep, du = dy * dact(u)/du, with u and keep of forward.epilogue.
    means: (2 or 3, C) fp32 | fp64: the sums of `epilogue_reduce` divided by the number of values per channel, if mean
    and var are of the batch; None if they are constants: dz = gamma / sqrt(var + eps) * du. Without mean: dz = du.
    grad: (N, C, ...) fp16 | bf16 | fp32 | fp64, with the dtype and shape of z; copied unless it has z's strides.
    Returns: dz, and du, which is the gradient of a residual before the activation: each with the shape, dtype and
        strides of z, or of shape (0,) if it is not needed.
    Raises: TypeError, ValueError if z, grad, means, residual or dropout is not as above; RuntimeError if z is not on
        CUDA.
    Source: Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.
    """
    view = describe("z", z)
    grad = in_layout_of(z, "grad", grad)
    residual = residual_before(epilogue, z)
    if means is not None and (means.dim() != 2 or means.shape[0] < 2 or means.shape[1] != view.channels):
        expected = f"(2, {view.channels}) or (3, {view.channels})"
        raise ValueError(f"means: expected {expected}, got {tuple(means.shape)}")
    vectors, scalars = epilogue_operands(epilogue)
    dz, du = (torch.empty_like(z) if needed else z.new_empty(0) for needed in (need_z, need_residual))
    if z.numel() == 0 or not (need_z or need_residual):
        return dz, du
    check_device("z", z, backward_kernel)
    means = None if means is None or epilogue.mean is None else means.contiguous()
    registers = gradient_registers(z.element_size())
    constants = epilogue.slope_kind, epilogue.dropout > 0, None
    plan = pointwise_plan(backward_kernel, view, z.device, registers, *constants)
    tensors = grad, z, residual, dz if need_z else None, du if need_residual else None, means, *vectors
    launch(plan, z.device, tensors, scalars)
    return dz, du
