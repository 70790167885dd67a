"""Measures who convolves the fastest, site by site, within a budget of time.

A candidate is compared with plain torch before it is timed; one that is wrong is left out and told of. Configs of row
triton come in the order of their predictions, compiled many at a time, until the next cannot win. What does not fit
into the budget is not measured, and nothing is guessed for it. On a card the time is that of the kernels, without
Python's: calls over inputs that the L2 cache does not hold, as one CUDA graph.
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

from ... import tuning
from ...triton_kernels.conv.configs import Conv
from ...tuning.format import Entry, Key
from .. import timing
from ..explain.conv_sites import Site
from .candidates import (
    Candidate,
    Form,
    Made,
    Wrong,
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
RACE = 2.0  # a config that is so many times slower than the fastest is not measured again
MOST_SECONDS = 2.0  # for timing a site
LEAST, WARMUP = 5, 1  # rounds
COMPILERS = min(8, os.cpu_count() or 1)  # kernels that compile at the same time
FIRST = 8  # configs that are measured, whatever is predicted of the next
DOUBT = 0.8  # the next may beat what was measured, beside its prediction, by this factor
SHARED = 2  # the fastest configs of a shape, which are measured at its other dilations


@dataclass
class Result:
    """What was found for a site in a form. reason: why nothing was; wrong, failed: candidate -> why it was left out."""

    site: Site
    form: Form
    key: Key | None = None
    entry: Entry | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)  # of every candidate that was timed
    wrong: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_measured: list[str] = field(default_factory=list)  # configs that did not fit into the budget
    unlikely: list[str] = field(default_factory=list)  # configs that cannot win, by prediction and what was measured
    compiling: float = 0.0  # seconds, which are not of the budget for measuring
    reason: str = ""


def jobs(sites: Iterable[Site], forms: Sequence[Form]) -> list[tuple[Site, Form]]:
    """Each site once that the table tells from the others, in each form."""
    different: dict[tuple, Site] = {}
    for site in sites:
        batch, *sizes = site.input
        known = (tuning.bucket(batch), *sizes, site.weight, site.spec, site.residual != "none")
        different.setdefault(known, site)
    return [(site, form) for site in different.values() for form in forms]


def tune(jobs: Sequence[tuple[Site, Form]], seconds: float) -> Iterator[Result]:
    """A result for each job. A job gets an equal share of the time that is left; none begins when it is over."""
    deadline = time.monotonic() + seconds
    fastest: dict[tuple, list[Conv]] = {}
    for index, (site, form) in enumerate(jobs):
        result, left = Result(site, form), deadline - time.monotonic()
        if left <= 0:
            result.reason = f"the {seconds:g} s were over"
        else:
            try:
                measure(result, left / (len(jobs) - index), left, fastest)
            except Exception as error:  # of one site, as out of memory is
                result.reason = _told(error)
        yield result


@torch.no_grad()
def measure(result: Result, share: float, left: float, fastest: dict[tuple, list[Conv]]) -> None:
    """Fills the result: measures for `share` seconds where that is enough; gives up where `left` is not.

    fastest: shape -> its best configs, where another dilation of it was measured; filled too.
    """
    begun, device = time.monotonic(), result.form.device
    sets = timing.copies(lambda: arguments(result.site, result.form), device)
    found_key = key(result.site, result.form, sets[0])
    shape = tuning.shape_of(found_key)
    calls, once = _ready(result, sets, share / 2, left / 2, fastest.get(shape))
    if not once:
        result.reason = "no candidate ran"
        return
    least = min(once.values())
    race = {c: run for c, run in calls.items() if not isinstance(c, Conv) or once[c] <= RACE * least}
    count = max(1, int(1 / least))  # a measurement takes a millisecond
    shortest, spent = (LEAST + WARMUP) * count * sum(once[c] for c in race) / 1e3, time.monotonic() - begun
    if shortest > left - spent:
        result.reason = f"its {shortest:.3g} s of timing did not fit into the budget"
        return
    seconds = min(MOST_SECONDS, share - spent + result.compiling, left - spent)
    times = timing.interleaved(race, device, seconds, least=LEAST, warmup=WARMUP, calls=count)
    found = {c: ms / len(sets) for c, ms in (once | timing.medians(times)).items()}
    result.milliseconds = {_name(candidate): ms for candidate, ms in found.items()}
    result.key, result.entry = found_key, entry(found)
    fastest.setdefault(shape, sorted((c for c in found if isinstance(c, Conv)), key=lambda c: found[c])[:SHARED])


def _ready(
    result: Result, sets: list[Made], share: float, left: float, wanted: list[Conv] | None
) -> tuple[dict[Candidate, timing.Call], dict[Candidate, float]]:
    """The candidates that are right, as calls over all sets, and the milliseconds of one; row triton in the wanted
    configs, if there are any. A config begins within `share` seconds, what compiling took left out, and `left`."""
    calls: dict[Candidate, timing.Call] = {}
    once: dict[Candidate, float] = {}
    begun, truth, device = time.monotonic(), expected(sets[0]), result.form.device
    listed = [c for c in candidates(result.site, sets[0]) if not wanted or c in wanted or not isinstance(c, Conv)]
    predicted = predictions([c for c in listed if isinstance(c, Conv)], sets[0])
    for some in _together(listed, device):
        spent = time.monotonic() - begun
        if isinstance(some[0], Conv):
            if spent > left or spent - result.compiling > share:
                result.not_measured += map(_name, some)
                continue
            if _hopeless(predicted, once, some[0]):
                result.unlikely += map(_name, some)
                continue
        runs = {candidate: [call(candidate, result.form, made) for made in sets] for candidate in some}
        for candidate, y in zip(some, _first_calls(result, [runs[candidate][0] for candidate in some])):
            try:
                if isinstance(y, Exception):
                    raise y
                check(y, truth)
                calls[candidate] = at_once(runs[candidate], device)
                once[candidate] = timing.milliseconds(calls[candidate], device)
            except Wrong as error:
                result.wrong[_name(candidate)] = str(error)
            except Exception as error:  # as a shape or a card may make any library raise
                result.failed[_name(candidate)] = _told(error)
    return calls, once


def _together(listed: Sequence[Candidate], device: torch.device) -> Iterator[list[Candidate]]:
    """Rows one by one; then a config, so that what kernels share is made once, and then as many as compile at once."""
    rows = [c for c in listed if not isinstance(c, Conv)]
    configs = [c for c in listed if isinstance(c, Conv)]
    size = COMPILERS if device.type == "cuda" else 1  # Triton's interpreter has one thread
    yield from ([row] for row in rows)
    yield from ([config] for config in configs[:1])
    for _, some in groupby(enumerate(configs[1:]), key=lambda pair: pair[0] // size):
        yield [config for _, config in some]


def _hopeless(predicted: dict[Conv, float], once: dict[Candidate, float], config: Conv) -> bool:
    """Whether a config would be slower than the fastest, were it as much faster than predicted as any that was measured
    and faster still by DOUBT; so are all behind it."""
    ratios = [once[other] / predicted[other] for other in predicted if other in once]
    return len(ratios) >= FIRST and DOUBT * min(ratios) * predicted[config] > min(once.values())


def _first_calls(result: Result, runs: Sequence[timing.Call]) -> list[Tensor | Exception]:
    """What each gives, or why it does not; several at a time, since a first call compiles."""

    @torch.no_grad()  # of this thread
    def one(run: timing.Call) -> Tensor | Exception:
        try:
            return run()  # type: ignore[return-value]
        except Exception as error:
            return error

    begun = time.monotonic()
    if len(runs) == 1:
        found = [one(runs[0])]
    else:
        with ThreadPoolExecutor(len(runs)) as pool:
            found = list(pool.map(one, runs))
    result.compiling += time.monotonic() - begun
    return found


def entry(milliseconds: dict[Candidate, float]) -> Entry:
    """The choice between candidates."""
    configs = {candidate: ms for candidate, ms in milliseconds.items() if isinstance(candidate, Conv)}
    rows = {candidate: ms for candidate, ms in milliseconds.items() if isinstance(candidate, str)}
    best = min(configs, key=lambda config: configs[config], default=None)
    if best is not None:
        rows["triton"] = configs[best]
    backend = min(rows, key=lambda row: rows[row])
    if rows.get("library", float("inf")) <= NOISE * rows[backend]:
        backend = "library"
    return Entry(backend, best, rows)


def _name(candidate: Candidate) -> str:
    return f"triton {candidate.describe()}" if isinstance(candidate, Conv) else candidate


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
