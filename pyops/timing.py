"""Timing side by side: callables measured in turns, so that a slow spell of the machine meets them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)


def milliseconds(call: Call, device: torch.device, calls: int = 1) -> float:
    """The time of one call, as the mean of `calls` in a row: CUDA events on a card, the wall clock elsewhere."""
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / calls
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) * 1e3 / calls


def interleaved(
    variants: Mapping[Key, Call],
    device: torch.device,
    seconds: float = 5.0,
    least: int = 3,
    most: int = 50,
    warmup: int = 2,
    calls: int = 1,
    progress: Callable[[int], object] = lambda rounds: None,
) -> dict[Key, list[float]]:
    """Milliseconds of each variant, measured round robin after `warmup` rounds that are not kept.

    Every variant gets an equal share of `seconds`, and so as many repeats as fit into it, from `least` to `most`: one
    that is slow gets fewer, spread evenly over the rounds of the others. The first round that is kept is the estimate.

    calls: how many calls make one measurement. progress: is called after each round, with their number.
    """
    for _ in range(warmup):
        for call in variants.values():
            milliseconds(call, device, calls)
    times = {name: [milliseconds(call, device, calls)] for name, call in variants.items()}
    share = seconds * 1e3 / max(len(variants), 1)
    repeats = {name: min(most, max(least, int(share / (first * calls + 1e-6)))) for name, (first,) in times.items()}
    rounds = max(repeats.values(), default=0)
    for done in range(1, rounds + 1):
        for name, call in variants.items():
            if len(times[name]) <= (repeats[name] - 1) * done // rounds:
                times[name].append(milliseconds(call, device, calls))
        progress(rounds)
    return times


def medians(times: Mapping[Key, list[float]]) -> dict[Key, float]:
    return {name: statistics.median(values) for name, values in times.items()}
