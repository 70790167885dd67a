"""Measures who convolves the fastest, site by site, within a budget of time.

A candidate is compared with plain torch before it is timed; one that is wrong is left out and told of. What does not
fit into the budget is not measured, and nothing is guessed for it. On a card the time is that of the kernels, without
Python's: calls over inputs that the L2 cache does not hold, as one CUDA graph.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from . import timing, tuning
from .sites import Site
from .triton_kernels.configs import Conv
from .tuner_candidates import Candidate, Form, Made, Wrong, arguments, at_once, call, candidates, check, key
from .tuning_format import Entry, Key

NOISE = 1.02  # a tie within it goes to the library, so that fusing never makes a model slower
RACE = 2.0  # a config that is so many times slower than the fastest is not measured again
MOST_SECONDS = 2.0  # for timing a site
LEAST, WARMUP = 5, 1  # rounds


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
    for index, (site, form) in enumerate(jobs):
        result, left = Result(site, form), deadline - time.monotonic()
        if left <= 0:
            result.reason = f"the {seconds:g} s were over"
        else:
            try:
                measure(result, left / (len(jobs) - index), left)
            except Exception as error:  # of one site, as out of memory is
                result.reason = _told(error)
        yield result


@torch.no_grad()
def measure(result: Result, share: float, left: float) -> None:
    """Fills the result, in `share` seconds where that is enough; gives up where `left` is not."""
    begun = time.monotonic()
    sets = timing.copies(lambda: arguments(result.site, result.form), result.form.device)
    calls = _ready(result, sets, begun + share / 2)
    device = result.form.device
    once = {candidate: timing.milliseconds(run, device) for candidate, run in calls.items()}
    if not once:
        result.reason = "no candidate ran"
        return
    fastest = min(once.values())
    race = {c: run for c, run in calls.items() if not isinstance(c, Conv) or once[c] <= RACE * fastest}
    count = max(1, int(1 / fastest))  # a measurement takes a millisecond
    least, spent = (LEAST + WARMUP) * count * sum(once[c] for c in race) / 1e3, time.monotonic() - begun
    if least > left - spent:
        result.reason = f"its {least:.3g} s of timing did not fit into the budget"
        return
    seconds = min(MOST_SECONDS, share - spent)
    times = timing.interleaved(race, device, seconds, least=LEAST, warmup=WARMUP, calls=count)
    found = {c: ms / len(sets) for c, ms in (once | timing.medians(times)).items()}
    result.milliseconds = {_name(candidate): ms for candidate, ms in found.items()}
    result.key, result.entry = key(result.site, result.form, sets[0]), entry(found)


def _ready(result: Result, sets: list[Made], until: float) -> dict[Candidate, timing.Call]:
    """The candidates that are right, as calls over all sets. Configs are made ready until the time is over."""
    calls: dict[Candidate, timing.Call] = {}
    for candidate in candidates(result.site, sets[0]):
        if isinstance(candidate, Conv) and time.monotonic() > until:
            result.not_measured.append(_name(candidate))
            continue
        try:
            runs = [call(candidate, result.form, made) for made in sets]
            check(runs[0](), sets[0])
            calls[candidate] = at_once(runs, result.form.device)
        except Wrong as error:
            result.wrong[_name(candidate)] = str(error)
        except Exception as error:  # as a shape or a card may make any library raise
            result.failed[_name(candidate)] = _told(error)
    return calls


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
