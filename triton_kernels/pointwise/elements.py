"""Device functions of the pointwise kernels: element indices, random slopes and dropout, and gradients of a tile."""

import triton
import triton.language as tl

from ..epilogue import draw_keep, draw_slope, normalize, slope_at, uniforms


@triton.jit
def nchw_index(row, col, cols, pixels, LAYOUT: tl.constexpr):
    """The index of each element of a tile in a contiguous (N, C, ...) tensor, which its random numbers depend on."""
    if LAYOUT == "nhwc":
        return ((row // pixels * cols)[:, None] + col[None, :]) * pixels + (row % pixels)[:, None]
    else:
        return row[:, None] * cols + col[None, :]


@triton.jit
def draw(
    seed_ptr, index, slope, slope_upper, dropout, keep_scale,
    SLOPE_KIND: tl.constexpr, DROPOUT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The slope of each element (drawn from [slope, slope_upper], or the channel's) and its factor of dropout.

    Without dropout the second is a placeholder. One call of the generator gives both.
    """
    slopes, keep = slope, slope
    if SLOPE_KIND == "random" or DROPOUT:
        first, second = uniforms(tl.load(seed_ptr), tl.load(seed_ptr + 1), index)
        if SLOPE_KIND == "random":
            slopes = draw_slope(first, slope, tl.full([1, 1], slope_upper, DTYPE))
        if DROPOUT:
            keep = draw_keep(second, tl.full([1, 1], dropout, tl.float32), tl.full([1, 1], keep_scale, DTYPE))
    return slopes, keep


@triton.jit
def gradients(
    grad_ptr, z_ptr, residual_ptr, seed_ptr, offset, index, mask, scale, shift, slope, slope_upper, dropout, keep_scale,
    NORM: tl.constexpr, SLOPE_KIND: tl.constexpr, DROPOUT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """z, dy = grad * keep, du = dy * dact(u)/du and u of a tile; z and dy are 0 outside the mask.

    NORM: scale and shift apply. residual_ptr: the residual if it comes before the activation, else None: a residual
    after the activation does not affect these.
    """
    z = tl.load(z_ptr + offset, mask=mask, other=0.0).to(DTYPE)
    dy = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(DTYPE)
    residual = None
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offset, mask=mask, other=0.0).to(DTYPE)
    RESIDUAL: tl.constexpr = "none" if residual_ptr is None else "before"
    if NORM:
        u = normalize(z, scale, shift, residual, RESIDUAL)
    else:
        u = normalize(z, None, None, residual, RESIDUAL)
    slopes, keep = draw(seed_ptr, index, slope, slope_upper, dropout, keep_scale, SLOPE_KIND, DROPOUT, DTYPE)
    if DROPOUT:
        dy = dy * keep
    return z, dy, dy * slope_at(u, slopes, SLOPE_KIND), u
