"""The epilogue of every Triton kernel, as functions of values. csrc/epilogue.h is its C++ counterpart, reference.py its
oracle.

    u = acc * scale + shift (+ residual)       y = u where u > 0, else slope * u       (+ residual, when it comes after)

With dropout, y * keep at the end. The gradient: du = dy where u > 0, else slope * dy, with dy = grad * keep.

Values are blocks or scalars of the accumulator's type (fp32, or fp64 for fp64 tensors) that broadcast against acc, so a
kernel may hold its channels on rows, on columns or on neither. Every fma is written out and kernels are compiled with
FUSION = False, so the compiler contracts nothing else: the same inputs give the same bits wherever the epilogue runs.
"""

import triton
import triton.language as tl

FUSION = False  # enable_fp_fusion of every launch and of the compile gate


@triton.jit
def divide(x, y):
    """x / y, rounded to nearest; the operator / of Triton is approximate in fp32."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def square_root(x):
    """sqrt(x), rounded to nearest."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def scale_shift(mean, var, gamma, beta, eps):
    """scale = gamma / sqrt(var + eps), shift = beta - mean * scale."""
    scale = divide(gamma, square_root(var + eps))
    return scale, tl.fma(mean, -scale, beta)  # Triton's -x is 0 - x: it would make a mean of 0 lose the sign of beta


@triton.jit
def uniforms(seed, offset, index):
    """Two fp32 in [0, 1): the upper 24 bits of words 0 and 1 of Philox-4x32-10, as reference.uniform draws them.

    The first is for slopes, the second for dropout. seed, offset: int64 scalars; index: an element's index in a
    contiguous (N, C, ...) tensor, whatever the layout.
    """
    high = (index.to(tl.int64) >> 32).to(tl.uint32)
    zero = tl.zeros_like(high)  # gives the offset's halves the shape of the index
    first, second, _, _ = tl.philox(
        seed, index.to(tl.uint32), high, offset.to(tl.uint32) + zero, (offset >> 32).to(tl.uint32) + zero
    )
    return (first >> 8).to(tl.float32) * (2.0**-24), (second >> 8).to(tl.float32) * (2.0**-24)


@triton.jit
def draw_slope(uniform, lower, upper):
    """One slope per element in [lower, upper]: fma(upper - lower, uniform, lower)."""
    span = upper - lower
    return tl.fma(span, uniform.to(lower.dtype), lower)


@triton.jit
def draw_keep(uniform, dropout, keep_scale):
    """Factors of dropout: keep_scale = 1 / (1 - dropout) (0 if dropout is 1) where uniform >= dropout, else 0.

    uniform, dropout: fp32, as the oracle compares them. keep_scale: in the accumulator's type.
    """
    return tl.where(uniform >= dropout, keep_scale, 0.0)


@triton.jit
def activate(u, slope, SLOPE_KIND: tl.constexpr):
    """y = u where u > 0, else slope * u. ReLU selects and never multiplies: -inf becomes 0, NaN and -0.0 stay."""
    if SLOPE_KIND == "relu":
        return tl.where(u < 0, 0.0, u)
    else:
        return tl.where(u > 0, u, slope * u)


@triton.jit
def slope_at(u, slope, SLOPE_KIND: tl.constexpr):
    """dact(u)/du: 1 where u > 0, else the slope, also at 0. For NaN it is 1 with ReLU and RReLU, as in torch."""
    if SLOPE_KIND == "relu":
        return tl.where(u <= 0, 0.0, 1.0)
    elif SLOPE_KIND == "random":
        return tl.where(u <= 0, slope, 1.0)
    else:
        return tl.where(u > 0, 1.0, slope)


@triton.jit
def normalize(acc, scale, shift, residual, RESIDUAL: tl.constexpr):
    """u = acc * scale + shift (+ residual, if it comes before), for forward and backward, so they agree on u > 0.

    If scale is None, u = acc: a multiplication would lose -0.0.
    """
    u = acc
    if scale is not None:
        u = tl.fma(acc, scale, shift)
    if RESIDUAL == "before":
        u = u + residual
    return u


@triton.jit
def epilogue(acc, scale, shift, slope, residual, keep, SLOPE_KIND: tl.constexpr, RESIDUAL: tl.constexpr):
    """y = (act(acc * scale + shift (+ residual)) (+ residual)) * keep.

    scale: see normalize. SLOPE_KIND: "relu" | "number" | "tensor" | "random", for which slope is None, a scalar, a
    block of the channels' slopes, drawn values. RESIDUAL: "none" | "before" | "after". keep: None or from draw_keep.
    """
    y = activate(normalize(acc, scale, shift, residual, RESIDUAL), slope, SLOPE_KIND)
    if RESIDUAL == "after":
        y = y + residual
    if keep is not None:
        y = y * keep
    return y
