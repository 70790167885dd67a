"""The tables of docs/reliability.md that show how each case ended on each backend, from the files of record.py."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

TITLES = {
    "test_cases_shapes.py": "Shapes and arguments",
    "test_cases_types.py": "Types and devices",
    "test_cases_batchnorm.py": "BatchNorm",
    "test_cases_activation.py": "Activations",
    "test_cases_layout.py": "Layouts",
    "test_cases_gradients.py": "Gradients",
    "test_cases_compile.py": "Compilers",
    "test_cases_framework.py": "Framework",
}
COLUMNS = {"auto": "`auto`", "library": "`library`", "native": "`native` on a CPU", "triton": "`triton`, interpreted"}

Outcomes = dict[str, dict[str, dict[str, dict]]]  # as record.py writes it


def merged(paths: Iterable[Path]) -> Outcomes:
    """The outcomes of several runs, which had different backends."""
    every: Outcomes = {}
    for path in paths:
        for file, tests in json.loads(path.read_text()).items():
            for name, backends in tests.items():
                every.setdefault(file, {}).setdefault(name, {}).update(backends)
    return every


def lines(outcomes: Outcomes) -> list[str]:
    """A table for each file of TITLES, and the numbered reasons of what is not applicable."""
    reasons: list[str] = []
    written: list[str] = []
    for file, title in TITLES.items():
        written += ["", f"### {title}", "", f"`tests/api/{file}`", ""]
        written += [f"| case | {' | '.join(COLUMNS.values())} |", f"|---|{'---|' * len(COLUMNS)}"]
        for name, backends in outcomes[file].items():
            words = name.removeprefix("test_").replace("_", " ")
            cells = [cell(backends.get(column, backends.get("")), reasons) for column in COLUMNS]
            written.append(f"| {words} | {' | '.join(cells)} |")
    return [*written, "", "Not applicable:", "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]


def cell(outcome: dict | None, reasons: list[str]) -> str:
    """ "same (12), refused (2), n/a ¹": reasons is the list that the number refers to; new ones are appended."""
    if outcome is None:
        outcome = {"skipped": {"the interpreter, or this backend in it, cannot run the test": 1}}
    parts = [f"{kind} ({outcome[kind]})" for kind in ("same", "refused") if kind in outcome]
    for reason in outcome.get("skipped", {}):
        if reason not in reasons:
            reasons.append(reason)
        parts.append(f"n/a [{reasons.index(reason) + 1}]")
    return ", ".join(parts)
