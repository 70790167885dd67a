"""Decide which cases are slower than the noise of the same run."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

SMALLEST = 0.02  # no difference below it is reported
Times = dict[str, list[float]]  # case -> milliseconds of each round


class Worker(Protocol):
    """A process that has one version of the package."""

    def time(self, case: str) -> float:
        """Milliseconds of one call of the case."""


class Change(NamedTuple):
    """ratio: the median of new / base. noise: what unchanged code may differ by. slower: ratio is above 1 + noise."""

    ratio: float
    noise: float
    slower: bool


def measured(workers: Mapping[str, Worker], cases: Sequence[str], rounds: int) -> dict[str, Times]:
    """Each worker's times. The workers take turns case by case, in an order that is drawn anew; one works at a time."""
    times: dict[str, Times] = {name: {case: [] for case in cases} for name in workers}
    order, draw = list(workers), random.Random(0)
    for _ in range(rounds):
        for case in cases:
            draw.shuffle(order)
            for name in order:
                times[name][case].append(workers[name].time(case))
    return times


def changes(base: Times, again: Times, new: Times) -> dict[str, Change]:
    """`base` and `again` are two processes of the same version.

    The noise of a case: the usual difference between these two, or its own if that is larger, and the 95 % range
    of the median of its ratios.
    """
    same = {case: statistics.median(b / a for a, b in zip(base[case], again[case])) for case in base}
    result = {}
    for case, values in new.items():
        ratios = [2 * n / (a + b) for n, a, b in zip(values, base[case], again[case])]
        difference = max(usual(same.values()), abs(same[case] - 1))
        ratio, noise = statistics.median(ratios), max(SMALLEST, difference + _uncertainty(ratios))
        result[case] = Change(ratio, noise, ratio > 1 + noise)
    return result


def usual(ratios: Iterable[float]) -> float:
    """Twice the median of what ratios of unchanged code differ from 1 by; 0 if there are none."""
    return 2 * statistics.median([abs(ratio - 1) for ratio in ratios] or [0.0])


def _uncertainty(values: Sequence[float]) -> float:
    """Half the 95 % range of the median: 1.57 (q3 - q1) / sqrt(n) (McGill, Tukey, Larsen: Variations of Box Plots)."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return 1.57 * (high - low) / len(values) ** 0.5
