"""Read the JSON file of a run of tune that was interrupted, for `tune --continue`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.checks import UsageError
from ..explain.conv_layers import ConvLayer
from .candidates import Form
from .report import describe

SAME = ("device", "versions", "dtype", "layout")  # measurements of two runs are comparable only if these are equal
ENTRY = {"layer": str, "shape": str, "frozen": bool, "wrong": dict}  # the fields that are read, and their types


def read(path: Path | None, report: Mapping[str, Any]) -> dict[str, Any]:
    """The "table", "ceilings" and "entries" of the file. A file that does not exist yet has no entries.

    report: what the file of this run begins with. Raises UsageError if that of the file differs.
    """
    if path is None:
        raise UsageError("--continue: expected --json with the file of an interrupted run, got none")
    if not path.exists():
        return {"table": None, "ceilings": None, "entries": []}
    try:
        file = json.loads(path.read_text())
        correct = all(type(entry[name]) is kind for entry in file["entries"] for name, kind in ENTRY.items())
        known = {name: file[name] for name in (*SAME, "table", "ceilings")}
    except (OSError, ValueError, KeyError, TypeError):
        correct = False
    if not correct:
        raise UsageError(f"--continue: expected a file that `tune --json` wrote, got {str(path)!r}")
    for name in SAME:
        if known[name] != report[name]:
            raise UsageError(f"--continue: {path}: expected {name} {report[name]}, got {known[name]}")
    return {name: file[name] for name in ("table", "ceilings", "entries")}


def missing(
    jobs: Sequence[tuple[ConvLayer, Form]], entries: Sequence[Mapping[str, Any]]
) -> list[tuple[ConvLayer, Form]]:
    """The jobs that are not among the entries. One that lost the GPU is: it would lose it again."""
    listed = {(entry["layer"], entry["shape"], entry["frozen"]) for entry in entries}
    return [(layer, form) for layer, form in jobs if (layer.name, describe(layer), form.frozen) not in listed]
