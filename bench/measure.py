"""Prepare, check and time the providers of a case, all of its subjects in one interleaved run, as rows of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from atrous.tools import timing
from bench import rounds
from bench.subjects.subject import DEVICE, OURS, Subject, Unavailable

Row = dict[str, Any]
Key = tuple[str, str]  # provider, dtype


@dataclass
class Case:
    """part: the table. name: the column. calls, errors, reasons: what runs, its error, and why the others do not."""

    part: str
    name: str
    calls: dict[Key, timing.Call] = field(default_factory=dict)
    errors: dict[Key, float | None] = field(default_factory=dict)
    reasons: dict[Key, str] = field(default_factory=dict)

    def prepare(self, subjects: list[Subject], chosen: Callable[[str], bool]) -> None:
        """Makes the first call of each provider, and compares it with fp64. A peer that fails is not run, ours raises.

        The first provider of all is the baseline, chosen or not.
        """
        for subject in subjects:
            for name, prepare in subject.providers.items():
                key = name, str(subject.dtype).removeprefix("torch.")
                if not self.calls and not self.reasons or chosen(name):
                    self._prepare(key, subject, prepare)

    def _prepare(self, key: Key, subject: Subject, prepare: Callable[[], timing.Call]) -> None:
        try:
            call = prepare()
            self.errors[key] = subject.error(key[0], call())
        except Unavailable as reason:
            self.reasons[key] = str(reason)
        except Exception as failure:
            if key[0].startswith(OURS):
                raise
            lines = str(failure).strip().splitlines()
            self.reasons[key] = f"{type(failure).__name__}: {lines[0] if lines else ''}"
        else:
            self.calls[key] = call

    def times(self, seconds: float) -> dict[Key, list[float]]:
        """Milliseconds of each provider, round by round."""
        return rounds.interleaved(self.calls, _milliseconds, seconds)

    def rows(self, times: dict[Key, list[float]], **more: Any) -> Iterator[Row]:
        """A row of each provider; `more` is added to those that ran."""
        base = next(iter(times.values()))
        for (provider, dtype), values in times.items():
            ratio = timing.ratio(base, values)
            yield self._row(provider, dtype) | {
                "speedup": ratio.median, "spread": ratio.spread, "counted": ratio.counted,
                "median_ms": timing.medians({0: values})[0], "rounds": len(values),
                "error": self.errors[provider, dtype], **more,
            }  # fmt: skip
        for (provider, dtype), reason in self.reasons.items():
            yield self._row(provider, dtype) | {"reason": reason}

    def _row(self, provider: str, dtype: str) -> Row:
        return {"part": self.part, "case": self.name, "provider": provider, "dtype": dtype}


def _milliseconds(call: timing.Call, repeats: int) -> float:
    return timing.milliseconds(call, DEVICE, repeats)


def recompiles():
    """A context that raises torch's limit of recompilations: a case compiles one model for each provider."""
    return torch.compiler.config.patch(recompile_limit=64)  # type: ignore[attr-defined]
