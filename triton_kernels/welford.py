"""Mean and M2, the sum of squared deviations: how those of parts become those of the whole.

Only deviations are squared, so a large mean takes no digits away. Source: Chan, Golub and LeVeque, Algorithms for
computing the sample variance (1983).
"""

import triton
import triton.language as tl

from .epilogue import divide


@triton.jit
def combine(count, mean, m2, other_count, other_mean, other_m2):
    """Number, mean and M2 of two parts together."""
    total = count + other_count
    difference = other_mean - mean
    step = difference * (other_count / tl.maximum(total, 1.0))
    return total, mean + step, tl.fma(step * count, difference, m2 + other_m2)


@triton.jit
def merge(count, mean, m2, AXIS: tl.constexpr):
    """The same of all parts along an axis of a matrix, at once. What a part without values holds does not matter."""
    there = count > 0
    total = tl.sum(count, AXIS)
    safe = tl.maximum(total, 1.0)
    near = tl.sum(tl.where(there, count * mean, 0.0), AXIS) / safe
    deviation = tl.where(there, mean - tl.expand_dims(near, AXIS), 0.0)
    correction = tl.sum(count * deviation, AXIS) / safe
    squares = tl.where(there, m2, 0.0) + count * deviation * deviation
    return total, near + correction, tl.sum(squares, AXIS) - total * correction * correction


@triton.jit
def variance(count, m2):
    """Biased, and not below 0 by a rounding; NaN stays."""
    return divide(tl.where(m2 < 0, 0.0, m2), tl.maximum(count, 1.0))
