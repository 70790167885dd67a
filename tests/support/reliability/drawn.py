"""The tables of docs/reliability.md that show what was drawn, from the files of `make fuzz` and `make opinfo-all`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

AXES = ("form", "backend", "dtype", "operators", "known")  # in fuzz.json, which has more


def fuzz_lines(path: Path) -> list[str]:
    """The counts of a run of the fuzzer, an axis in each line."""
    run = json.loads(path.read_text())
    lines = [*_about(run, run["cases"]), "| counted by | |", "|---|---|"]
    for axis in AXES:
        counts = run["counts"].get(axis) or run.get(axis)
        if counts:
            ordered = sorted(counts.items(), key=lambda item: -item[1])
            lines.append(f"| {axis} | {', '.join(f'{name} {count:,}' for name, count in ordered)} |")
    return lines


def opinfo_lines(path: Path) -> list[str]:
    """A line for each operator and module of torch's databases: how many cases ended in which way."""
    run = json.loads(path.read_text())
    lines = _about(run, sum(sum(counts.values()) for counts in run["counts"].values()))
    lines += ["| torch's samples of | the same | refused | not applicable | other |", "|---|---:|---:|---:|---:|"]
    for name, counts in run["counts"].items():
        kinds: Counter[str] = Counter()
        for result, count in counts.items():
            kinds[opinfo_kind(result)] += count
        cells = [f"{kinds[kind]:,}" for kind in ("the same", "refused", "not applicable", "other")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def _about(run: dict, cases: int) -> list[str]:
    return [f"torch {run['torch']}, seed {run['seed']}: {cases:,} cases, {len(run['failures'])} failed.", ""]


def opinfo_kind(result: str) -> str:
    """The column of an outcome, which is a kind and its reason; the same error is the same."""
    kinds = ("the same", "refused", "not applicable")
    return next((kind for kind in kinds if result.startswith(kind)), "other")
