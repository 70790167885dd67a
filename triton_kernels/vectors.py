"""Per-channel vectors (BatchNorm statistics and parameters, slopes): a kernel's operands, and their loads in it."""

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .epilogue import scale_shift

if TYPE_CHECKING:
    from ..core.spec import Epilogue


def epilogue_vectors(epilogue: "Epilogue") -> tuple[list[Tensor | None], int]:
    """mean, var, gamma, beta, slope and seed, None where the kernel reads none, and the stride of the slope."""
    draws = epilogue.slope_kind == "random" or epilogue.dropout > 0
    if draws and epilogue.seed is None:
        raise ValueError("seed: expected (2,) int64 for random slopes or dropout, got None")
    slope = epilogue.slope if epilogue.slope_kind == "tensor" else None
    vectors = *epilogue[:4], slope, epilogue.seed if draws else None
    return [None if v is None else v.contiguous() for v in vectors], int(slope is not None and slope.numel() > 1)


@triton.jit
def load_vector(ptr, default, channel, mask, DTYPE: tl.constexpr):
    """The channels' values as DTYPE, or the default if ptr is None."""
    if ptr is None:
        return tl.full([1], default, DTYPE)
    else:
        return tl.load(ptr + channel, mask=mask, other=1.0).to(DTYPE)


@triton.jit
def load_channels(
    mean_ptr, var_ptr, gamma_ptr, beta_ptr, eps, slope_ptr, slope_value, slope_stride, channel, mask,
    AXIS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """scale, shift and slope of the channels. Without mean and beta, scale and shift are placeholders.

    Vectors are loaded in one dimension and expanded along AXIS afterwards: loaded as a column of a tile, every thread
    would fetch the same value once for each of its elements.
    """
    slope = tl.expand_dims(load_vector(slope_ptr, slope_value, channel * slope_stride, mask, DTYPE), AXIS)
    if mean_ptr is None and beta_ptr is None:
        return slope, slope, slope  # Triton 3.6 cannot return None among values
    elif mean_ptr is None:
        beta = load_vector(beta_ptr, 0.0, channel, mask, DTYPE)
        return tl.full([1, 1], 1.0, DTYPE), tl.expand_dims(beta, AXIS), slope
    else:
        mean = load_vector(mean_ptr, 0.0, channel, mask, DTYPE)
        var = load_vector(var_ptr, 1.0, channel, mask, DTYPE)
        gamma = load_vector(gamma_ptr, 1.0, channel, mask, DTYPE)
        beta = load_vector(beta_ptr, 0.0, channel, mask, DTYPE)
        scale, shift = scale_shift(mean, var, gamma, beta, tl.full([1], eps, DTYPE))
        return tl.expand_dims(scale, AXIS), tl.expand_dims(shift, AXIS), slope
