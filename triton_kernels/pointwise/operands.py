"""Operands of the pointwise kernels: a tensor as a matrix, the vectors and scalars of an epilogue, the launch plan."""

from functools import lru_cache
from math import gcd, prod
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..epilogue import FUSION
from ..launch import ACCESS_BYTES, Plan, chip, needs_int64
from ..vectors import epilogue_vectors
from .configs import NCHW_PIXELS, POINTWISE_PROGRAMS, Pointwise, PointwiseKey, pointwise_config

if TYPE_CHECKING:
    from ...core.spec import Epilogue

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class View(NamedTuple):
    """A tensor as a matrix, its channels, its pixels per channel and image, and its dtype."""

    key: PointwiseKey
    channels: int
    pixels: int
    dtype: torch.dtype


def describe(name: str, x: Tensor) -> View:
    """The tensor's view; raises TypeError, ValueError if its dtype, shape or strides are not supported."""
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
        if pixels * dtype.itemsize % ACCESS_BYTES == 0 or pixels >= NCHW_PIXELS:
            return View(PointwiseKey("nchw", batch * channels, pixels), channels, pixels, dtype)
        return View(PointwiseKey("nchw_flat", batch, channels * pixels), channels, pixels, dtype)
    if x.is_contiguous() or (x.dim() in CHANNELS_LAST and x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()])):
        return View(PointwiseKey("nhwc", batch * pixels, channels), channels, pixels, dtype)
    got = f"got shape {tuple(shape)}, strides {strides}"
    raise ValueError(f"{name}: expected a contiguous or channels_last tensor, {got}")


def in_layout_of(z: Tensor, name: str, x: Tensor) -> Tensor:
    """x in the strides of z, copied if it has others: the kernels read both at the same offsets. Strides
    of axes of size 1 do not matter.

    Raises ValueError unless x has the shape and dtype of z.
    """
    if (x.shape, x.dtype) != (z.shape, z.dtype):
        expected = f"shape {tuple(z.shape)}, {z.dtype} as z has"
        raise ValueError(f"{name}: expected {expected}, got {tuple(x.shape)}, {x.dtype}")
    same = x.stride() == z.stride() or all(n == 1 or a == b for n, a, b in zip(z.shape, x.stride(), z.stride()))
    return x if same else torch.empty_like(z).copy_(x)


def residual_before(epilogue: "Epilogue", z: Tensor) -> Tensor | None:
    """The residual if gradients depend on it, else None: it is a term of u if it comes before the activation."""
    residual = None if epilogue.residual is None else in_layout_of(z, "residual", epilogue.residual)
    return residual if epilogue.residual_place == "before" else None


def accumulator(z: Tensor) -> torch.dtype:
    """The dtype of the arithmetic, and of the sums and statistics that are returned."""
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def epilogue_operands(epilogue: "Epilogue") -> tuple[list[Tensor | None], tuple[float, ...]]:
    """The vectors and the scalars of an epilogue, in the order of the kernels' arguments."""
    dropout = epilogue.dropout
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a probability from 0 to 1, got {dropout}")
    vectors, slope_stride = epilogue_vectors(epilogue)
    keep_scale = 1 / (1 - dropout) if dropout < 1 else 0.0
    slopes = epilogue.eps, epilogue.slope_value, epilogue.slope_upper
    return vectors, (*slopes, float(dropout), keep_scale, slope_stride)


def tiling(key: PointwiseKey, config: Pointwise, dtype: torch.dtype) -> dict:
    """The constants of a launch that fix the kernel's tiles of z, and compiler options."""
    return {
        "LAYOUT": key.layout, "GROUP": gcd(key.cols, ACCESS_BYTES // dtype.itemsize),
        "OFFSET": tl.int64 if needs_int64(key.rows * key.cols) else tl.int32,
        "BLOCK_ROWS": config.block_rows, "BLOCK_COLS": config.block_cols,
        "num_warps": config.num_warps, "enable_fp_fusion": FUSION,
    }  # fmt: skip


@lru_cache(maxsize=4096)
def pointwise_plan(
    kernel, z: View, device: torch.device, registers: int, slope_kind: str, dropout: bool, residual: str | None
) -> Plan:
    """The plan of an elementwise kernel. residual: its constant RESIDUAL; None for a kernel without one."""
    key, config = z.key, pointwise_config(z.key)
    row_tiles, col_tiles = triton.cdiv(key.rows, config.block_rows), triton.cdiv(key.cols, config.block_cols)
    row_programs = triton.cdiv(row_tiles, triton.cdiv(row_tiles * col_tiles, POINTWISE_PROGRAMS * chip(device)[1]))
    constants = {"SLOPE_KIND": slope_kind, "DROPOUT": dropout, **tiling(key, config, z.dtype), "maxnreg": registers}
    if residual is not None:
        constants["RESIDUAL"] = residual
    sizes = key.rows, key.cols // constants["GROUP"], z.channels, z.pixels, row_programs
    return Plan(kernel, row_programs * col_tiles, sizes, constants)
