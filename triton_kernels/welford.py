"""Combines the mean and M2 (the sum of squared deviations) of parts into those of the whole.

Only deviations are squared, so a large mean costs no precision. Source: Chan, Golub and LeVeque, Algorithms for
computing the sample variance (1983).
"""

import triton
import triton.language as tl

from .epilogue import divide


@triton.jit
def combine(count, mean, m2, other_count, other_mean, other_m2):
    """Count, mean and M2 of two parts together."""
    total = count + other_count
    difference = other_mean - mean
    step = difference * (other_count / tl.maximum(total, 1.0))
    return total, mean + step, tl.fma(step * count, difference, m2 + other_m2)


@triton.jit
def merge(count, mean, m2, AXIS: tl.constexpr):
    """Count, mean and M2 of all parts along an axis of a matrix. Mean and M2 of a part with count 0 are ignored."""
    nonempty = count > 0
    total = tl.sum(count, AXIS)
    safe = tl.maximum(total, 1.0)
    estimate = tl.sum(tl.where(nonempty, count * mean, 0.0), AXIS) / safe
    deviation = tl.where(nonempty, mean - tl.expand_dims(estimate, AXIS), 0.0)
    correction = tl.sum(count * deviation, AXIS) / safe
    squares = tl.where(nonempty, m2, 0.0) + count * deviation * deviation
    return total, estimate + correction, tl.sum(squares, AXIS) - total * correction * correction


@triton.jit
def variance(count, m2):
    """Biased variance m2 / count. Rounding cannot make it negative; NaN is passed on."""
    return divide(tl.where(m2 < 0, 0.0, m2), tl.maximum(count, 1.0))
