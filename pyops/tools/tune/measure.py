"""Measure the candidates of each layer within a time budget, and choose the fastest.

A candidate is compared with fp64 before it is timed; a wrong one is left out and reported. Configs of backend triton
are tried in the order of their predicted times, many compiled in parallel, until the next one cannot win. Configs
beyond the budget are not measured, and no time is guessed for them. On a GPU the time is that of the kernels without
Python's: calls on inputs that are not in the L2 cache, as one CUDA graph.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from ... import testing, tuning
from ...triton_kernels.conv.configs import Conv
from ...tuning.format import Entry, Key
from .. import timing
from ..explain.conv_layers import ConvLayer
from .candidates import (
    Candidate,
    Form,
    Kwargs,
    WrongResult,
    arguments,
    at_once,
    call,
    candidates,
    check,
    expected,
    key,
    predictions,
)

NOISE = 1.02  # a tie within it goes to the library, so that fusing never makes a model slower
RACE = 2.0  # a config that is this many times slower than the fastest is not timed again
MAX_SECONDS = 2.0  # for timing a layer
MIN_ROUNDS, WARMUP = 5, 1
COMPILERS = min(8, os.cpu_count() or 1)  # kernels that compile at the same time
FIRST = 8  # configs that are measured whatever is predicted for the next
DOUBT = 0.8  # the next config may be faster than the best ratio of measured to predicted time says, by this factor
SHARED = 2  # the fastest configs of a shape, which are measured at its other dilations


@dataclass
class Result:
    """The measurements of a layer in one form. wrong, failed: candidate -> why it is left out; reason: why no entry."""

    layer: ConvLayer
    form: Form
    key: Key | None = None
    entry: Entry | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)  # candidate -> its time, if it was timed
    wrong: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_measured: list[str] = field(default_factory=list)  # configs that did not fit into the budget
    unlikely: list[str] = field(default_factory=list)  # configs that cannot win, by prediction and measured times
    compiling: float = 0.0  # seconds; they do not count against the budget
    reason: str = ""
    lost: bool = False  # it lost the GPU: no later job can be measured in this process


def jobs(layers: Iterable[ConvLayer], forms: Sequence[Form]) -> list[tuple[ConvLayer, Form]]:
    """Each layer with a table key of its own once, in each form."""
    different: dict[tuple, ConvLayer] = {}
    for layer in layers:
        batch, *sizes = layer.input
        known = (tuning.bucket(batch), *sizes, layer.weight, layer.spec, layer.residual != "none")
        different.setdefault(known, layer)
    return [(layer, form) for layer in different.values() for form in forms]


def tune(jobs: Sequence[tuple[ConvLayer, Form]], seconds: float) -> Iterator[Result]:
    """Yields a result for each job, until one loses the GPU.

    A job gets an equal part of the remaining time; none begins after the deadline.
    """
    deadline = time.monotonic() + seconds
    fastest: dict[tuple, list[Conv]] = {}
    for index, (layer, form) in enumerate(jobs):
        result, left = Result(layer, form), deadline - time.monotonic()
        if left <= 0:
            result.reason = f"the {seconds:g} s were over"
        else:
            try:
                measure(result, left / (len(jobs) - index), left, fastest)
            except Exception as error:  # it concerns this layer alone, such as out of memory
                result.reason, result.lost = _message(error), testing.gpu_lost()
        yield result
        if result.lost:
            return


@torch.no_grad()
def measure(result: Result, budget: float, left: float, fastest: dict[tuple, list[Conv]]) -> None:
    """Fills the result: measures for `budget` seconds if they suffice, and gives up if not even `left` seconds do.

    fastest: shape -> its best configs, if it was measured at another dilation; updated.
    """
    begun, device = time.monotonic(), result.form.device
    sets = timing.copies(lambda: arguments(result.layer, result.form), device)
    table_key = key(result.layer, result.form, sets[0])
    shape = tuning.shape_of(table_key)
    calls, once = _ready(result, sets, budget / 2, left / 2, fastest.get(shape))
    if not once:
        result.reason = "no candidate ran"
        return
    least = min(once.values())
    race = {c: run for c, run in calls.items() if not isinstance(c, Conv) or once[c] <= RACE * least}
    count = max(1, int(1 / least))  # a measurement takes a millisecond
    shortest, spent = (MIN_ROUNDS + WARMUP) * count * sum(once[c] for c in race) / 1e3, time.monotonic() - begun
    if shortest > left - spent:
        result.reason = f"its {shortest:.3g} s of timing did not fit into the budget"
        return
    seconds = min(MAX_SECONDS, budget - spent + result.compiling, left - spent)
    times = timing.interleaved(race, device, seconds, least=MIN_ROUNDS, warmup=WARMUP, calls=count)
    medians = {c: ms / len(sets) for c, ms in (once | timing.medians(times)).items()}
    result.milliseconds = {_name(candidate): ms for candidate, ms in medians.items()}
    result.key, result.entry = table_key, entry(medians)
    fastest.setdefault(shape, sorted((c for c in medians if isinstance(c, Conv)), key=lambda c: medians[c])[:SHARED])


def _ready(
    result: Result, sets: list[Kwargs], budget: float, left: float, wanted: list[Conv] | None
) -> tuple[dict[Candidate, timing.Call], dict[Candidate, float]]:
    """The correct candidates as calls over all sets, and the milliseconds of one call; triton in the wanted configs if
    there are any. No config begins after `budget` seconds, compiling not counted, or after `left` seconds.

    Raises GpuLost, which names all that were launched since the last synchronization: an error may be of any of them.
    """
    calls: dict[Candidate, timing.Call] = {}
    once: dict[Candidate, float] = {}
    begun, truth, device = time.monotonic(), expected(sets[0]), result.form.device
    listed = [c for c in candidates(result.layer, sets[0]) if not wanted or c in wanted or not isinstance(c, Conv)]
    predicted = predictions([c for c in listed if isinstance(c, Conv)], sets[0])
    for group in _groups(listed, device):
        spent = time.monotonic() - begun
        if isinstance(group[0], Conv):
            if spent > left or spent - result.compiling > budget:
                result.not_measured += map(_name, group)
                continue
            if _hopeless(predicted, once, group[0]):
                result.unlikely += map(_name, group)
                continue
        runs = {candidate: [call(candidate, result.form, kwargs) for kwargs in sets] for candidate in group}
        for candidate, y in zip(group, _first_calls(result, [runs[candidate][0] for candidate in group])):
            try:
                if isinstance(y, Exception):
                    raise y
                check(y, truth)
                calls[candidate] = at_once(runs[candidate], device)
                once[candidate] = timing.milliseconds(calls[candidate], device)
            except WrongResult as error:
                result.wrong[_name(candidate)] = str(error)
            except Exception as error:  # any library may fail for some shape or GPU
                testing.raise_if_lost(f"{', '.join(map(_name, group))}: {_message(error)}", error)
                result.failed[_name(candidate)] = _message(error)
    return calls, once


def _groups(listed: Sequence[Candidate], device: torch.device) -> Iterator[list[Candidate]]:
    """Backends one by one; then one config, which builds what all share; then as many as compile in parallel."""
    backends: list[Candidate] = [c for c in listed if not isinstance(c, Conv)]
    configs: list[Candidate] = [c for c in listed if isinstance(c, Conv)]
    size = COMPILERS if device.type == "cuda" else 1  # Triton's interpreter has one thread
    yield from ([backend] for backend in backends)
    yield from ([config] for config in configs[:1])
    for _, group in groupby(enumerate(configs[1:]), key=lambda pair: pair[0] // size):
        yield [config for _, config in group]


def _hopeless(predicted: dict[Conv, float], once: dict[Candidate, float], config: Conv) -> bool:
    """True if a config, and so every later one, would be slower than the fastest even with the best ratio of measured
    to predicted time seen so far, times DOUBT."""
    ratios = [once[other] / predicted[other] for other in predicted if other in once]
    return len(ratios) >= FIRST and DOUBT * min(ratios) * predicted[config] > min(once.values())


def _first_calls(result: Result, runs: Sequence[timing.Call]) -> list[Tensor | Exception]:
    """The result or the exception of each first call; in parallel, because a first call compiles."""

    @torch.no_grad()  # grad mode is per thread
    def one(run: timing.Call) -> Tensor | Exception:
        try:
            return run()  # type: ignore[return-value]
        except Exception as error:
            return error

    begun = time.monotonic()
    if len(runs) == 1:
        outcomes = [one(runs[0])]
    else:
        with ThreadPoolExecutor(len(runs)) as pool:
            outcomes = list(pool.map(one, runs))
    result.compiling += time.monotonic() - begun
    return outcomes


def entry(milliseconds: dict[Candidate, float]) -> Entry:
    """The table entry: the fastest backend and triton's fastest config."""
    configs = {candidate: ms for candidate, ms in milliseconds.items() if isinstance(candidate, Conv)}
    backends = {candidate: ms for candidate, ms in milliseconds.items() if isinstance(candidate, str)}
    best = min(configs, key=lambda config: configs[config], default=None)
    if best is not None:
        backends["triton"] = configs[best]
    fastest = min(backends, key=lambda name: backends[name])
    if backends.get("library", float("inf")) <= NOISE * backends[fastest]:
        fastest = "library"
    return Entry(fastest, best, backends)


def _name(candidate: Candidate) -> str:
    return f"triton {candidate.describe()}" if isinstance(candidate, Conv) else candidate


def _message(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
