"""What the tables for a card share: jobs within a budget, where a result comes from, its file, the command line."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from measures import dtype_name

from atrous import build_info

SAME = ("kind", "device", "driver", "commit", "versions")  # of two runs that may share a file
Result = dict[str, Any]
Job = tuple[Any, ...]  # (measure, *arguments)


def fill(result: Result, parts: Mapping[str, Iterable[Job]], seconds: Mapping[str, float], save: Callable) -> None:
    """Runs the jobs of each part into result[part], one after the other, until the part's time is up.

    Each job stands in result["not_run"] until it is done, so that a run that was cut off says what it lacks. A result
    that comes with this list is continued: only what stands there runs.
    """
    listed = result.get("not_run")
    wanted = None if listed is None else [(entry["part"], entry["arguments"]) for entry in listed]
    waiting: dict[str, list[tuple[Job, dict]]] = {}
    for part, jobs in parts.items():
        result.setdefault(part, [])
        entries = [(job, {"part": part, "arguments": _names(job), "reason": "not reached"}) for job in jobs]
        waiting[part] = [pair for pair in entries if wanted is None or (part, pair[1]["arguments"]) in wanted]
    result["not_run"] = [entry for pairs in waiting.values() for _, entry in pairs]
    for part, pairs in waiting.items():
        _run(pairs, result[part], result["not_run"], seconds[part], save)
    save()


def _names(job: Job) -> list[str]:
    return [dtype_name(value) if isinstance(value, torch.dtype) else str(value) for value in job[1:]]


def _run(waiting: list[tuple[Job, dict]], rows: list, not_run: list[dict], seconds: float, save: Callable) -> None:
    """A failure is a line, not an end. No job begins where the longest one before it would not fit any more."""
    started, longest = time.monotonic(), 0.0
    for (measure, *arguments), entry in waiting:
        begun = time.monotonic()
        if begun - started + longest > seconds:
            entry["reason"] = f"the {seconds:g} s of this part were over, or would have been"
            continue
        try:
            rows.append(measure(*arguments))
            not_run.remove(entry)
        except Exception as error:
            entry["reason"] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        torch.compiler.reset()
        longest = max(longest, time.monotonic() - begun)
        save()


def described(device: torch.device) -> Result:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "device": card,
        "driver": _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": _answer("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "date": datetime.date.today().isoformat(),
        "versions": build_info.versions(),
    }


def _answer(*command: str) -> str:
    """The first line that a command prints, or "unknown"."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split("\n")
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return lines[0].strip() or "unknown"


def missing(result: Result) -> list[str]:
    return [f"not run: {row['part']} {' '.join(row['arguments'])}: {row['reason']}" for row in result["not_run"]]


def opened(folder: Path, about: Result, suffix: str, again: bool) -> tuple[Path, Result]:
    """The file <gpu>-<date><suffix>.json, and the result that it holds if it is to be continued. Raises ValueError."""
    card = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    path = folder / f"{card}-{about['date']}{suffix}.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not again or not path.exists():
        return path, about
    before = json.loads(path.read_text())
    for name in SAME:
        if before.get(name) != about[name]:
            raise ValueError(f"--continue: {path} is of another {name}: {before.get(name)}, now {about[name]}")
    return path, before


def main(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    kind: str,
    suffix: str,
    run: Callable[[argparse.Namespace, torch.device, Result, Callable[[], None]], tuple[str, int]],
) -> int:
    """run(arguments, device, result, save) fills the result; it returns what to print and the exit status."""
    parser.add_argument("results", type=Path, metavar="RESULTS_DIR")
    parser.add_argument("--continue", dest="again", action="store_true", help="what today's file lists as not run")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench: no NVIDIA card that torch can use; the table is for one", file=sys.stderr)
        return 3
    torch.backends.cudnn.benchmark = True  # the library at its best
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        path, result = opened(args.results, {"kind": kind, **described(device)}, suffix, args.again)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    text, status = run(args, device, result, lambda: write(path, result))
    print(f"{text}\nwritten: {path}")
    return status


def write(path: Path, result: Result) -> None:
    """Whole or not at all: the run may be cut off."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)
