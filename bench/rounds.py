"""Time calls in rounds, in which every call has one turn; atrous.tools.timing compares them round by round."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from atrous.tools import timing

Key = TypeVar("Key", bound=Hashable)
Times = Mapping[Key, Sequence[float]]
SHORTEST = 4.0  # ms: a shorter call is repeated to take as long, and measured so BLOCKS times in its turn
BLOCKS = 5  # their median counts, since an interruption is as long as one


def interleaved(
    calls: Mapping[Key, timing.Call],
    clock: Callable[[timing.Call, int], float],
    seconds: float,
    least: int = 5,
    most: int = 60,
) -> dict[Key, list[float]]:
    """Milliseconds of each call, one value for each round.

    Every call has a turn in every round, in an order that is drawn anew, so that none always follows the same other.
    There are as many rounds as fit into `seconds`, from `least` to `most`. The round before them is not recorded.

    clock: (call, repeats) -> milliseconds of one call, the mean of `repeats` consecutive ones.
    """
    once = {name: clock(call, 1) for name, call in calls.items()}
    repeats = {name: max(1, math.ceil(SHORTEST / max(ms, 1e-3))) for name, ms in once.items()}
    blocks = {name: BLOCKS if repeats[name] > 1 else 1 for name in calls}
    a_round = sum(ms * repeats[name] * blocks[name] for name, ms in once.items())
    times: dict[Key, list[float]] = {name: [] for name in calls}
    order, draw = list(calls), random.Random(0)
    for _ in range(max(least, min(most, int(seconds * 1e3 / a_round)))):
        draw.shuffle(order)
        for name in order:
            turn = [clock(calls[name], repeats[name]) for _ in range(blocks[name])]
            times[name].append(statistics.median(turn))
    return times


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """a of time = c * size^a: least squares in the logarithms of both."""
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(t) for t in times]).slope
