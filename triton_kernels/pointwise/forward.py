"""The epilogue as a separate kernel, for a convolution of another library: reads z once, writes y once."""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..epilogue import epilogue as apply_epilogue
from ..launch import check_device, launch
from ..vectors import load_channels
from .configs import pointwise_registers
from .elements import draw, nchw_index
from .operands import describe, epilogue_operands, in_layout_of, pointwise_plan

if TYPE_CHECKING:
    from ...core.spec import Epilogue


@triton.jit(do_not_specialize=["slope_stride", "rows", "col_groups", "channels", "pixels", "row_programs"])
def epilogue_kernel(
    z_ptr, residual_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, seed_ptr,
    eps: tl.float64, slope_value: tl.float64, slope_upper: tl.float64, dropout: tl.float64, keep_scale: tl.float64,
    slope_stride, rows, col_groups, channels, pixels, row_programs,
    LAYOUT: tl.constexpr, SLOPE_KIND: tl.constexpr, RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr,
    GROUP: tl.constexpr, OFFSET: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """y = epilogue(z): a program takes one tile of columns and every row_programs-th tile of rows; see PointwiseKey.

    There are col_groups * GROUP columns: GROUP is a power of two from which the compiler derives the access width.
    OFFSET: the integer type of offsets. All pointers except z_ptr and y_ptr may be None.
    """
    DTYPE: tl.constexpr = tl.float64 if z_ptr.dtype.element_ty == tl.float64 else tl.float32
    cols = col_groups.to(OFFSET) * GROUP
    col_tiles = tl.cdiv(cols, BLOCK_COLS)
    program = tl.program_id(0).to(OFFSET)
    col = program % col_tiles * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    if LAYOUT != "nchw":
        channel = col if LAYOUT == "nhwc" else col // pixels
        scale, shift, slope = load_channels(
            mean_ptr, var_ptr, gamma_ptr, beta_ptr, eps, slope_ptr, slope_value, slope_stride,
            channel, col < cols, 0, DTYPE,
        )  # fmt: skip
    tile = program // col_tiles
    while tile < tl.cdiv(rows, BLOCK_ROWS):  # not range(): the interpreter of Triton 3.6 cannot run it with NumPy 2.4
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        if LAYOUT == "nchw":
            scale, shift, slope = load_channels(
                mean_ptr, var_ptr, gamma_ptr, beta_ptr, eps, slope_ptr, slope_value, slope_stride,
                row % channels, row < rows, 1, DTYPE,
            )  # fmt: skip
        mask = (row < rows)[:, None] & (col < cols)[None, :]
        offset = row[:, None] * cols + col[None, :]
        z = tl.load(z_ptr + offset, mask=mask).to(DTYPE)
        residual = None
        if RESIDUAL != "none":
            residual = tl.load(residual_ptr + offset, mask=mask).to(DTYPE)
        index = nchw_index(row, col, cols, pixels, LAYOUT)
        slopes, keep = draw(seed_ptr, index, slope, slope_upper, dropout, keep_scale, SLOPE_KIND, DROPOUT, DTYPE)
        keep = keep if DROPOUT else None
        if mean_ptr is None and beta_ptr is None:
            y = apply_epilogue(z, None, None, slopes, residual, keep, SLOPE_KIND, RESIDUAL)
        else:
            y = apply_epilogue(z, scale, shift, slopes, residual, keep, SLOPE_KIND, RESIDUAL)
        tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)
        tile += row_programs


def epilogue(z: Tensor, epilogue: "Epilogue") -> Tensor:
    """y = (act(z * scale + shift (+ residual)) (+ residual)) * keep

    keep is 0 with probability dropout, else 1 / (1 - dropout).
    scale = gamma / sqrt(var + eps), shift = beta - mean * scale; without mean: scale = 1, shift = beta
    z: (N, C, ...) fp16 | bf16 | fp32 | fp64, contiguous or channels_last. epilogue: the other arguments of these
        equations: its residual is copied unless it has the strides of z; its vectors, (C,) and for slope also (1,),
        have any of these dtypes.
    Returns: y with the shape, dtype and strides of z.
    Raises: TypeError, ValueError if z, seed, residual or dropout is not as above; RuntimeError if z is not on CUDA.
    Source: docs of torch.nn.BatchNorm2d, PReLU, RReLU and Dropout.
    """
    view = describe("z", z)
    residual = None if epilogue.residual is None else in_layout_of(z, "residual", epilogue.residual)
    vectors, scalars = epilogue_operands(epilogue)
    y = torch.empty_like(z)
    if z.numel() == 0:
        return y
    check_device("z", z, epilogue_kernel)
    registers = pointwise_registers(z.element_size())
    constants = epilogue.slope_kind, epilogue.dropout > 0, epilogue.residual_place
    plan = pointwise_plan(epilogue_kernel, view, z.device, registers, *constants)
    launch(plan, z.device, (z, residual, y, *vectors), scalars)
    return y
