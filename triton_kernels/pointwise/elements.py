"""What the pointwise kernels share: where an element lies, what is drawn for it, and the gradients on its way back."""

import triton
import triton.language as tl

from ..epilogue import draw_keep, draw_slope, normalise, slope_at, uniforms


@triton.jit
def index_of(row, col, cols, pixels, LAYOUT: tl.constexpr):
    """The place in a contiguous tensor of each element of a tile: what its numbers are drawn by."""
    if LAYOUT == "last":
        return ((row // pixels * cols)[:, None] + col[None, :]) * pixels + (row % pixels)[:, None]
    else:
        return row[:, None] * cols + col[None, :]


@triton.jit
def drawn(
    seed_ptr, index, slope, slope_upper, dropout, kept,
    SLOPE_KIND: tl.constexpr, DROPOUT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The slope of each element, drawn from slope up or the channel's, and what dropout multiplies it with.

    Without dropout the second is not for use. One call of the generator gives both.
    """
    slopes, keep = slope, slope
    if SLOPE_KIND == "random" or DROPOUT:
        first, second = uniforms(tl.load(seed_ptr), tl.load(seed_ptr + 1), index)
        if SLOPE_KIND == "random":
            slopes = draw_slope(first, slope, tl.full([1, 1], slope_upper, DTYPE))
        if DROPOUT:
            keep = draw_keep(second, tl.full([1, 1], dropout, tl.float32), tl.full([1, 1], kept, DTYPE))
    return slopes, keep


@triton.jit
def gradients(
    grad_ptr, z_ptr, residual_ptr, seed_ptr, offset, index, mask, scale, shift, slope, slope_upper, dropout, kept,
    NORM: tl.constexpr, SLOPE_KIND: tl.constexpr, DROPOUT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """z, dy = grad * keep, du = dy * dact(u)/du and u of a tile; z and dy are 0 outside of the mask.

    NORM: whether there are a scale and a shift. residual_ptr: of a residual before the activation, or None: one after
    it changes nothing here.
    """
    z = tl.load(z_ptr + offset, mask=mask, other=0.0).to(DTYPE)
    dy = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(DTYPE)
    residual = None
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offset, mask=mask, other=0.0).to(DTYPE)
    RESIDUAL: tl.constexpr = "none" if residual_ptr is None else "before"
    if NORM:
        u = normalise(z, scale, shift, residual, RESIDUAL)
    else:
        u = normalise(z, None, None, residual, RESIDUAL)
    slopes, keep = drawn(seed_ptr, index, slope, slope_upper, dropout, kept, SLOPE_KIND, DROPOUT, DTYPE)
    if DROPOUT:
        dy = dy * keep
    return z, dy, dy * slope_at(u, slopes, SLOPE_KIND), u
