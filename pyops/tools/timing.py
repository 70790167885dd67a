"""Time callables in turns, so that a slow phase of the machine affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)
Set = TypeVar("Set", tuple, dict)
MAX_BYTES = 2**30  # for all copies of the inputs together
LIMIT = 0.05  # a ratio with a larger spread is marked as noisy


class Ratio(NamedTuple):
    """median: of the rounds' ratios. spread: half the distance of their quartiles, relative to the median."""

    median: float
    spread: float

    @property
    def counted(self) -> bool:
        return self.spread <= LIMIT


def ratio(base: Sequence[float], other: Sequence[float]) -> Ratio:
    """base / other of each round: above 1 if `other` is faster.

    Both are spread evenly over the same rounds. If one has fewer times, each of them is compared with that time of the
    other which was measured nearest to it.
    """
    count = min(len(base), len(other))
    ratios = [_nearest(base, index, count) / _nearest(other, index, count) for index in range(count)]
    if count == 1:
        return Ratio(ratios[0], 0.0)
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(middle, (high - low) / 2 / middle)


def _nearest(times: Sequence[float], index: int, count: int) -> float:
    return times[round(index * (len(times) - 1) / max(count - 1, 1))]


def milliseconds(call: Call, device: torch.device, calls: int = 1) -> float:
    """The time of one call, as the mean of `calls` consecutive ones: CUDA events on a GPU, else the wall clock."""
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
    """Milliseconds of each variant, measured round robin after `warmup` rounds that are not recorded.

    Every variant gets an equal part of `seconds` and as many repeats as fit into it, from `least` to `most`: a slow one
    gets fewer, spread evenly over the rounds of the others. The first recorded round is the estimate of its time.

    calls: the calls in one measurement. progress: called after each round with the number of rounds.
    """
    for _ in range(warmup):
        for call in variants.values():
            milliseconds(call, device, calls)
    times = {name: [milliseconds(call, device, calls)] for name, call in variants.items()}
    budget = seconds * 1e3 / max(len(variants), 1)
    repeats = {name: min(most, max(least, int(budget / (first * calls + 1e-6)))) for name, (first,) in times.items()}
    rounds = max(repeats.values(), default=0)
    for done in range(1, rounds + 1):
        for name, call in variants.items():
            if len(times[name]) <= (repeats[name] - 1) * done // rounds:
                times[name].append(milliseconds(call, device, calls))
        progress(rounds)
    return times


def medians(times: Mapping[Key, list[float]]) -> dict[Key, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def copies(make: Callable[[], Set], device: torch.device) -> list[Set]:
    """Enough sets of tensors that a GPU's L2 cache no longer holds a set when its turn comes again."""
    first = make()
    values = list(first.values()) if isinstance(first, dict) else list(first)
    size = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    count = max(1, min(-(-3 * cache // size), MAX_BYTES // size))
    return [first] + [make() for _ in range(count - 1)]


def ceilings(device: torch.device, side: int = 8192, mebi: int = 1024) -> dict[str, float]:
    """Peak throughput measured in this run: of a bf16 matrix product, and of a copy (bytes read and written)."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(mebi * 2**18, device=device)
    target = torch.empty_like(source)
    calls = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    times = medians(interleaved(calls, device, 2.0, least=5, calls=5))
    return {
        "matmul_tflops": 2 * side**3 / times["product"] / 1e9,
        "copy_gb_s": 2 * source.nbytes / times["copy"] / 1e6,
    }
