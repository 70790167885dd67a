"""Stacks of dilated convolutions as lists of rates: which have holes, and which rates reach as far without any.

Along one axis a stack of stride 1 with kernel sizes k_i and rates r_i reads the positions sum(j_i r_i), 0 <= j_i < k_i,
of a field of 1 + sum((k_i - 1) r_i) positions. It reads all of them, and so does the square stack of its field, if and
only if each rate is at most the field of all smaller ones:

    r_i <= 1 + sum over r_j < r_i of (k_j - 1) r_j, taken in ascending order

since the position just beyond that field is otherwise out of reach for every larger rate. RegSeg states it as a bound
for kernels of size 3 (Gao, arXiv:2111.09957); the field is then at most the product of the kernel sizes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Rates of the layers of a stack, the side of its field in pixels, and its kernel sizes."""

    rates: tuple[int, ...]
    kernel_sizes: tuple[int, ...]

    @property
    def field(self) -> int:
        return 1 + sum((kernel - 1) * rate for kernel, rate in zip(self.kernel_sizes, self.rates))

    def as_dict(self) -> dict:
        return {"rates": self.rates, "kernel_sizes": self.kernel_sizes, "receptive_field": self.field}


@dataclass(frozen=True)
class Suggestion:
    """Rates without holes for a stack that has some.

    stack: as many layers, and a field at least as large. None if the product of the kernel sizes is smaller than the
        field; then both of the others are given.
    longest: as many layers, and the largest field that they can have without holes.
    deeper: the fewest layers, the added ones with the largest kernel, whose field is at least as large.
    """

    stack: Stack | None
    longest: Stack | None = None
    deeper: Stack | None = None

    @property
    def stacks(self) -> list[Stack]:
        """Those that are given."""
        return [stack for stack in (self.stack, self.longest, self.deeper) if stack]

    def as_dict(self) -> dict:
        """The suggestion for JSON."""
        return {name: stack and stack.as_dict() for name, stack in vars(self).items()}

    def __str__(self) -> str:
        if self.stack:
            return f"rates {_listed(self.stack.rates)} reach {self.stack.field} pixels without holes"
        assert self.longest and self.deeper
        layers = len(self.longest.rates)
        return (
            f"no rates of {layers} layers reach that far without holes; the longest of {layers} are "
            f"{_listed(self.longest.rates)} ({self.longest.field} pixels), the fewest layers that reach as far are "
            f"{len(self.deeper.rates)}: {_listed(self.deeper.rates)} ({self.deeper.field} pixels)"
        )


def has_holes(stack: Stack) -> bool:
    """True if the stack does not read every position of its field."""
    field = 1
    for rate, kernel in sorted(zip(stack.rates, stack.kernel_sizes)):
        if kernel > 1 and rate > field:
            return True
        field += (kernel - 1) * rate
    return False


def hdc(stack: Stack) -> bool | None:
    """Wang's condition for hybrid dilated convolution: M_2 <= K, for n >= 2 layers of one kernel size K.

        M_n = r_n        M_i = max(M_{i+1} - 2 r_i, 2 r_i - M_{i+1}, r_i)

    M_i bounds the distance of two neighbouring positions that layers i to n read. None where it is not defined. It does
    not exclude holes: 2, 2, 2 passes. Source: Wang et al., arXiv:1702.08502, section 3.2, equation 2.
    """
    if len(stack.rates) < 2 or len(set(stack.kernel_sizes)) > 1 or stack.kernel_sizes[0] == 1:
        return None
    distance = stack.rates[-1]
    for rate in reversed(stack.rates[1:-1]):
        distance = max(distance - 2 * rate, 2 * rate - distance, rate)
    return distance <= stack.kernel_sizes[0]


def suggest(stack: Stack) -> Suggestion | None:
    """Rates without holes for a stack that has some, else None.

    Objective: the smallest field that is at least the stack's; then the smallest largest rate, since it is what reads
    the most padding; then the smallest second largest, and so on. Layers keep their kernel sizes; those of one size get
    their rates in ascending order, and a kernel of size 1 has rate 1.
    """
    if not has_holes(stack):
        return None
    kernels, target = stack.kernel_sizes, stack.field
    largest, deeper = math.prod(kernels), kernels
    if largest >= target:
        return Suggestion(_best(kernels, target))
    while math.prod(deeper) < target:
        deeper = (*deeper, max(kernels))
    return Suggestion(None, _best(kernels, largest), _best(deeper, target))


def _best(kernels: Sequence[int], target: int) -> Stack:
    """The best stack with a field of at least `target`, which is at most the product of the kernel sizes."""
    sizes = tuple(sorted(kernel for kernel in kernels if kernel > 1))
    field = target
    while (rates := _descending(sizes, field, field)) is None:
        field += 1
    left = {kernel: sorted(rate for rate, size in rates if size == kernel) for kernel in sizes}
    placed = tuple(left[kernel].pop(0) if kernel > 1 else 1 for kernel in kernels)
    return Stack(placed, tuple(kernels))


@functools.lru_cache(maxsize=1 << 16)
def _descending(kernels: tuple[int, ...], field: int, limit: int) -> tuple[tuple[int, int], ...] | None:
    """Rates, largest first, and their kernel sizes, of exactly this field without holes and at most the limit."""
    if not kernels:
        return () if field == 1 else None
    if not 1 + sum(kernel - 1 for kernel in kernels) <= field <= _longest(kernels, limit):
        return None
    for rate in range(1, limit + 1):
        options = []
        for index, kernel in enumerate(kernels):
            inner = field - (kernel - 1) * rate
            if kernels[index - 1 : index] == (kernel,) or inner < rate:  # the same kernel before, or a hole
                continue
            rest = _descending(kernels[:index] + kernels[index + 1 :], inner, rate)
            if rest is not None:
                options.append(((rate, kernel), *rest))
        if options:
            return min(options, key=lambda pairs: [rate for rate, _ in pairs])
    return None


def _longest(kernels: tuple[int, ...], limit: int) -> int:
    """An upper bound of the field without holes of rates up to a limit; the field itself for kernels of one size."""
    field = 1
    for _ in kernels:
        field += (max(kernels) - 1) * min(limit, field)
    return min(field, math.prod(kernels), 1 + limit * sum(kernel - 1 for kernel in kernels))


def _listed(rates: Sequence[int]) -> str:
    return ", ".join(map(str, rates))
