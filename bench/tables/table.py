"""What the tables for a GPU share: jobs within a budget of time, their part of the day's file, the command line."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from atrous import testing
from bench import record
from bench.tables.measures import dtype_name

Result = dict[str, Any]
Job = tuple[Any, ...]  # (measure, *arguments); measure returns a row, or yields one row as it grows
Growing = Generator[dict[str, Any], float | None, None]  # it is sent the seconds that are left
NO_TIME = "no time to"
TOP = ("device", "driver", "commit", "date", "versions", "ceilings")  # of the file, for all of its tables


def fill(result: Result, parts: Mapping[str, Iterable[Job]], seconds: Mapping[str, float], save: Callable) -> None:
    """Runs the jobs of each part that `seconds` names into result[part], one after the other, until its time is up.

    Each job stands in result["not_run"] until it is done, so that a run that was cut off says what it lacks. A part
    that the result holds already is continued: only what is listed there runs.
    """
    others = [entry for entry in result.get("not_run", []) if entry["part"] not in seconds]
    waiting = {part: _waiting(result, part, parts[part]) for part in seconds}
    result["not_run"] = others + [entry for pairs in waiting.values() for _, entry in pairs]
    for part, pairs in waiting.items():
        result.setdefault(part, [])
        _run(pairs, result[part], result["not_run"], seconds[part], save)
    save()


def _waiting(result: Result, part: str, jobs: Iterable[Job]) -> list[tuple[Job, dict]]:
    """The jobs of a part that have to run, each with its entry; rows that were cut off are measured again."""
    entries = [(job, {"part": part, "arguments": _names(job), "reason": "not reached"}) for job in jobs]
    if part not in result:
        return entries
    result[part] = [row for row in result[part] if not (isinstance(row, dict) and row.get("partial"))]
    listed = [entry["arguments"] for entry in result.get("not_run", []) if entry["part"] == part]
    return [pair for pair in entries if pair[1]["arguments"] in listed]


def _names(job: Job) -> list[str]:
    return [dtype_name(value) if isinstance(value, torch.dtype) else str(value) for value in job[1:]]


def _run(waiting: list[tuple[Job, dict]], rows: list, not_run: list[dict], seconds: float, save: Callable) -> None:
    """A failure is a line, not an end, unless it took the GPU with it. No job begins where the longest one before it
    would not fit any more."""
    started, longest = time.monotonic(), 0.0
    for (measure, *arguments), entry in waiting:
        begun = time.monotonic()
        if begun - started + longest > seconds:
            entry["reason"] = f"the {seconds:g} s of this part were over, or would have been"
            continue
        entry["reason"] = "begun and not finished"
        try:
            _measure(measure(*arguments), rows, started + seconds, save)
            not_run.remove(entry)
        except Exception as error:
            entry["reason"] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            if testing.gpu_lost():
                save()
                raise
        torch.compiler.reset()
        longest = max(longest, time.monotonic() - begun)
        save()


def _measure(found: Any, rows: list, until: float, save: Callable) -> None:
    """Appends a job's row. One that grows is saved each time, and grows no further when the time is over."""
    if not isinstance(found, Generator):
        rows.append(found)
        return
    row = next(found)
    row["partial"] = True
    rows.append(row)
    with contextlib.suppress(StopIteration):
        while True:
            save()
            if (left := until - time.monotonic()) < 0:
                raise TimeoutError("the time of this part was over before the row was complete")
            found.send(left)
    del row["partial"]


def too_long(seconds: float, left: float | None) -> str:
    """Why a compilation does not begin: nothing interrupts one. Empty where it does."""
    if left is None or seconds <= left:
        return ""
    return f"{NO_TIME} compile: it may take {seconds:g} s, {left:.0f} s were left"


def missing(result: Result) -> list[str]:
    return [f"not run: {row['part']} {' '.join(row['arguments'])}: {row['reason']}" for row in result["not_run"]]


def main(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    kind: str,
    seconds: Mapping[str, float],
    run: Callable[[argparse.Namespace, torch.device, Result, Callable[[], None]], tuple[str, int]],
) -> int:
    """run(arguments, device, result, save) fills the result, in arguments.seconds for each part; it returns what to
    print and the exit status. seconds: the parts, and what each may take where --seconds does not say."""
    parser.add_argument("results", type=Path, metavar="RESULTS_DIR")
    parser.add_argument("--continue", dest="again", action="store_true", help="what today's file lists as not run")
    if seconds:
        parser.add_argument("--part", choices=list(seconds), action="append", help="of the table (default every one)")
        parser.add_argument("--seconds", type=float, metavar="S", help="for each part, beside its last job's overrun")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench: no NVIDIA GPU that torch can use; the table is for one", file=sys.stderr)
        return 3
    if seconds:
        args.seconds = {part: args.seconds or seconds[part] for part in args.part or seconds}
    torch.backends.cudnn.benchmark = True  # the library at its best
    device = torch.device("cuda", torch.cuda.current_device())
    path, whole = record.opened(args.results, record.described(device))
    result = _result(whole, kind, () if args.again else getattr(args, "seconds", None) or ())
    text, status = run(args, device, result, lambda: _save(path, whole, kind, result))
    print(f"{text}\nwritten: {path}")
    return status


def _result(whole: Result, kind: str, anew: Iterable[str]) -> Result:
    """A table's own part of the file, with the top of the file in it; the parts to measure anew are left out."""
    before = {name: value for name, value in whole["tables"].get(kind, {}).items() if name not in anew}
    return {**before, **{name: whole[name] for name in TOP if name in whole}}


def _save(path: Path, whole: Result, kind: str, result: Result) -> None:
    if "ceilings" in result:
        whole["ceilings"] = result["ceilings"]  # of the GPU: the first table measures them for all
    whole["tables"][kind] = {name: value for name, value in result.items() if name not in TOP}
    record.write(path, whole)


def of(whole: Result, kind: str) -> Result | None:
    """A table of a file as its own `run` had it, None where the file has none."""
    return _result(whole, kind, ()) if kind in whole.get("tables", {}) else None
