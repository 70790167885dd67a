"""The epilogue as a kernel of its own, after somebody else's convolution: one read of z, one write of y."""

from functools import lru_cache
from math import gcd, prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..epilogue import FUSION
from ..epilogue import epilogue as apply_epilogue
from ..launch import ACCESS_BYTES, Plan, check_device, chip, launch, wide
from ..vectors import load_channels
from .configs import PLANE_LONG, POINTWISE_PROGRAMS, Pointwise, PointwiseKey, pointwise_config, pointwise_registers
from .elements import drawn, index_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@triton.jit(do_not_specialize=["slope_stride", "rows", "col_groups", "channels", "pixels", "row_programs"])
def epilogue_kernel(
    z_ptr, residual_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, seed_ptr,
    eps: tl.float64, slope_value: tl.float64, slope_upper: tl.float64, dropout: tl.float64, kept: tl.float64,
    slope_stride, rows, col_groups, channels, pixels, row_programs,
    LAYOUT: tl.constexpr, SLOPE_KIND: tl.constexpr, RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr,
    GROUP: tl.constexpr, OFFSET: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """y = epilogue(z): a program has one tile of columns and every row_programs-th tile of rows; see PointwiseKey.

    There are col_groups * GROUP columns: GROUP is a power of two that the compiler may build its access width on.
    OFFSET: the integer type of offsets. All pointers but z's and y's may be None.
    """
    DTYPE: tl.constexpr = tl.float64 if z_ptr.dtype.element_ty == tl.float64 else tl.float32
    cols = col_groups.to(OFFSET) * GROUP
    col_tiles = tl.cdiv(cols, BLOCK_COLS)
    program = tl.program_id(0).to(OFFSET)
    col = program % col_tiles * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    if LAYOUT != "planes":
        channel = col if LAYOUT == "last" else col // pixels
        scale, shift, slope = load_channels(
            mean_ptr, var_ptr, gamma_ptr, beta_ptr, eps, slope_ptr, slope_value, slope_stride,
            channel, col < cols, 0, DTYPE,
        )  # fmt: skip
    tile = program // col_tiles
    while tile < tl.cdiv(rows, BLOCK_ROWS):  # not range(): the interpreter of Triton 3.6 cannot run it with NumPy 2.4
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        if LAYOUT == "planes":
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
        index = index_of(row, col, cols, pixels, LAYOUT)
        slopes, keep = drawn(seed_ptr, index, slope, slope_upper, dropout, kept, SLOPE_KIND, DROPOUT, DTYPE)
        keep = keep if DROPOUT else None
        if mean_ptr is None and beta_ptr is None:
            y = apply_epilogue(z, None, None, slopes, residual, keep, SLOPE_KIND, RESIDUAL)
        else:
            y = apply_epilogue(z, scale, shift, slopes, residual, keep, SLOPE_KIND, RESIDUAL)
        tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)
        tile += row_programs


class View(NamedTuple):
    """A tensor as rows and columns, its channels, the pixels of a plane, and its dtype."""

    key: PointwiseKey
    channels: int
    pixels: int
    dtype: torch.dtype


def describe(name: str, x: Tensor) -> View:
    """Raises TypeError, ValueError on a tensor that the kernels do not read."""
    return _describe(name, x.shape, x.stride(), x.dtype)


@lru_cache(maxsize=4096)
def _describe(name: str, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> View:
    if dtype not in DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {dtype}")
    if len(shape) < 2:
        raise ValueError(f"{name}: expected (N, C, ...), got shape {tuple(shape)}")
    x = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    batch, channels, pixels = shape[0], shape[1], prod(shape[2:])
    if x.is_contiguous() and pixels != 1:
        if pixels * dtype.itemsize % ACCESS_BYTES == 0 or pixels >= PLANE_LONG:
            return View(PointwiseKey("planes", batch * channels, pixels), channels, pixels, dtype)
        return View(PointwiseKey("flat", batch, channels * pixels), channels, pixels, dtype)
    if x.is_contiguous() or (x.dim() in CHANNELS_LAST and x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()])):
        return View(PointwiseKey("last", batch * pixels, channels), channels, pixels, dtype)
    got = f"got shape {tuple(shape)}, strides {strides}"
    raise ValueError(f"{name}: expected a contiguous or channels_last tensor, {got}")


def matching(name: str, x: Tensor, z: Tensor) -> None:
    """Raises ValueError unless x is laid out as z is: the kernels read both at the same offsets."""
    if (x.shape, x.dtype) != (z.shape, z.dtype) or describe(name, x).key != describe("z", z).key:
        raise ValueError(
            f"{name}: expected shape {tuple(z.shape)}, strides {z.stride()}, {z.dtype} as z has, "
            f"got {tuple(x.shape)}, {x.stride()}, {x.dtype}"
        )


def residual_before(residual: Tensor | None, residual_after_act: bool, z: Tensor) -> Tensor | None:
    """The residual if a gradient depends on it: u has it as a term where it comes before the activation."""
    if residual is not None:
        matching("residual", residual, z)
    return None if residual_after_act else residual


def accumulator(z: Tensor) -> torch.dtype:
    """What everything is computed in, and sums and statistics are returned in."""
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def operands(
    mean, var, gamma, beta, eps, slope_kind, slope_value, slope_upper, slope, seed, dropout
) -> tuple[list[Tensor | None], tuple[float, ...]]:
    """What the pointwise kernels take of an epilogue: its vectors and its numbers."""
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a probability from 0 to 1, got {dropout}")
    draws = slope_kind == "random" or dropout > 0
    if draws and seed is None:
        raise ValueError("seed: expected (2,) int64 where slopes or zeros are drawn, got None")
    slope, seed = slope if slope_kind == "tensor" else None, seed if draws else None
    vectors = [None if v is None else v.contiguous() for v in (mean, var, gamma, beta, slope, seed)]
    kept = 1 / (1 - dropout) if dropout < 1 else 0.0
    return vectors, (eps, slope_value, slope_upper, float(dropout), kept, int(slope is not None and slope.numel() > 1))


def tiling(key: PointwiseKey, config: Pointwise, dtype: torch.dtype) -> dict:
    """The constants of a launch that fix how the kernel goes over z, and how it is compiled."""
    return {
        "LAYOUT": key.layout, "GROUP": gcd(key.cols, ACCESS_BYTES // dtype.itemsize),
        "OFFSET": tl.int64 if wide(key.rows * key.cols) else tl.int32,
        "BLOCK_ROWS": config.block_rows, "BLOCK_COLS": config.block_cols,
        "num_warps": config.num_warps, "enable_fp_fusion": FUSION,
    }  # fmt: skip


@lru_cache(maxsize=4096)
def pointwise_plan(
    kernel, z: View, device: torch.device, registers: int, slope_kind: str, dropout: bool, residual: str | None
) -> Plan:
    """How a kernel that sums nothing is launched. residual: of those that tell where it comes."""
    key, config = z.key, pointwise_config(z.key)
    row_tiles, col_tiles = triton.cdiv(key.rows, config.block_rows), triton.cdiv(key.cols, config.block_cols)
    row_programs = triton.cdiv(row_tiles, triton.cdiv(row_tiles * col_tiles, POINTWISE_PROGRAMS * chip(device)[1]))
    constants = {"SLOPE_KIND": slope_kind, "DROPOUT": dropout, **tiling(key, config, z.dtype), "maxnreg": registers}
    if residual is not None:
        constants["RESIDUAL"] = residual
    sizes = key.rows, key.cols // constants["GROUP"], z.channels, z.pixels, row_programs
    return Plan(kernel, row_programs * col_tiles, sizes, constants)


def epilogue(
    z: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    slope_kind: str,
    slope_value: float,
    slope_upper: float,
    slope: Tensor | None,
    seed: Tensor | None,
    residual: Tensor | None,
    residual_after_act: bool,
    dropout: float = 0.0,
) -> Tensor:
    """y = (act(z * scale + shift (+ residual)) (+ residual)) * keep

    keep is 0 with the probability dropout, else 1 / (1 - dropout).
    scale = gamma / sqrt(var + eps), shift = beta - mean * scale; without mean: scale = 1, shift = beta
    z, residual: (N, C, ...) fp16 | bf16 | fp32 | fp64, both contiguous or both channels_last; mean, var, gamma, beta:
    (C,), slope: (1,) or (C,), of any of these types; seed: (2,) int64. spec.Epilogue says what each of them means.
    Returns: y with the shape, dtype and strides of z.
    Raises: TypeError, ValueError on a z, seed, residual or dropout of another kind; RuntimeError on a device without a
        kernel.
    Source: docs of torch.nn.BatchNorm2d, PReLU, RReLU and Dropout.
    """
    view = describe("z", z)
    if residual is not None:
        matching("residual", residual, z)
    vectors, numbers = operands(mean, var, gamma, beta, eps, slope_kind, slope_value, slope_upper, slope, seed, dropout)
    y = torch.empty_like(z)
    if z.numel() == 0:
        return y
    check_device("z", z, epilogue_kernel)
    place = "none" if residual is None else "after" if residual_after_act else "before"
    registers = pointwise_registers(z.element_size())
    plan = pointwise_plan(epilogue_kernel, view, z.device, registers, slope_kind, dropout > 0, place)
    launch(plan, z.device, (z, residual, y, *vectors), numbers)
    return y
