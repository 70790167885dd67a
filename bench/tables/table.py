"""Common code of the GPU tables: jobs within a time budget, a table's part of the results file, the command line."""

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
GrowingRow = Generator[dict[str, Any], float | None, None]  # it is sent the seconds that are left
NO_TIME = "no time to"
AGAIN = "run what today's file has under not_run, except what lost the GPU"
TOP = ("device", "driver", "commit", "date", "versions", "ceilings")  # top-level keys of the file


def fill(result: Result, parts: Mapping[str, Iterable[Job]], seconds: Mapping[str, float], save: Callable) -> None:
    """Runs the jobs of each part in `seconds` and appends their rows to result[part], until the part's time is up.

    Each job is listed in result["not_run"] until it is done, so that an interrupted run says which rows are missing. A
    part that the result has already is continued: only its jobs in "not_run" run, except those that lost the GPU.
    Raises GpuLost.
    """
    listed = result.get("not_run", [])
    kept = [
        entry for entry in listed if entry["part"] not in seconds or (entry.get("lost") and entry["part"] in result)
    ]
    waiting = {part: _waiting(result, part, parts[part]) for part in seconds}
    result["not_run"] = kept + [entry for pairs in waiting.values() for _, entry in pairs]
    for part, pairs in waiting.items():
        result.setdefault(part, [])
        _run(pairs, result[part], result["not_run"], seconds[part], save)
    save()


def _waiting(result: Result, part: str, jobs: Iterable[Job]) -> list[tuple[Job, dict]]:
    """The jobs of a part that have to run, each with its "not_run" entry; partial rows are measured again, except those
    of jobs that lost the GPU."""
    entries = [(job, {"part": part, "arguments": _names(job), "reason": "not reached"}) for job in jobs]
    if part not in result:
        return entries
    result[part] = [row for row in result[part] if not _is_cut_off(row)]
    waiting = [entry for entry in result.get("not_run", []) if entry["part"] == part and not entry.get("lost")]
    listed = [entry["arguments"] for entry in waiting]
    return [pair for pair in entries if pair[1]["arguments"] in listed]


def _is_cut_off(row: Any) -> bool:
    return isinstance(row, dict) and bool(row.get("partial")) and not row.get("lost")


def _names(job: Job) -> list[str]:
    return [dtype_name(value) if isinstance(value, torch.dtype) else str(value) for value in job[1:]]


def _run(waiting: list[tuple[Job, dict]], rows: list, not_run: list[dict], seconds: float, save: Callable) -> None:
    """Runs jobs and records their failures; raises only GpuLost, after saving. A job does not start when less time is
    left than the longest one before it took."""
    started, longest = time.monotonic(), 0.0
    for (measure, *arguments), entry in waiting:
        begun, before = time.monotonic(), len(rows)
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
                for entry_or_row in (entry, *rows[before:]):  # a row that grows is in the result already
                    entry_or_row["lost"] = True
                save()
                raise testing.GpuLost(_described(entry)) from error
        torch.compiler.reset()
        longest = max(longest, time.monotonic() - begun)
        save()


def _measure(measured: Any, rows: list, until: float, save: Callable) -> None:
    """Appends a job's row. A generator's row is saved at each step; TimeoutError when the part's time is over."""
    if not isinstance(measured, Generator):
        rows.append(measured)
        return
    row = next(measured)
    row["partial"] = True
    rows.append(row)
    with contextlib.suppress(StopIteration):
        while True:
            save()
            if (left := until - time.monotonic()) < 0:
                raise TimeoutError("the time of this part was over before the row was complete")
            measured.send(left)
    del row["partial"]


def too_long(seconds: float, left: float | None) -> str:
    """The reason not to start a compilation, which cannot be interrupted; empty if there is time."""
    if left is None or seconds <= left:
        return ""
    return f"{NO_TIME} compile: it may take {seconds:g} s, {left:.0f} s were left"


def missing(result: Result) -> list[str]:
    return [f"not run: {_described(entry)}" for entry in result["not_run"]]


def _described(entry: dict) -> str:
    return f"{entry['part']} {' '.join(entry['arguments'])}: {entry['reason']}"


def main(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    kind: str,
    seconds: Mapping[str, float],
    run: Callable[[argparse.Namespace, torch.device, Result, Callable[[], None]], tuple[str, int]],
) -> int:
    """The command line of a table. run(arguments, device, result, save) fills the result within arguments.seconds per
    part and returns the text to print and the exit status. seconds: default budget of each part.

    Returns GPU_LOST after a sticky CUDA error: a new process with --continue measures the rest.
    """
    parser.add_argument("results", type=Path, metavar="RESULTS_DIR")
    parser.add_argument("--continue", dest="again", action="store_true", help=AGAIN)
    if seconds:
        parser.add_argument("--part", choices=list(seconds), action="append", help="what to measure (default: all)")
        parser.add_argument("--seconds", type=float, metavar="S", help="budget of each part; its last job may overrun")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench: expected an NVIDIA GPU that torch can use, got none", file=sys.stderr)
        return 3
    if seconds:
        args.seconds = {part: args.seconds or seconds[part] for part in args.part or seconds}
    torch.backends.cudnn.benchmark = True  # let cuDNN search for its fastest algorithm
    device = torch.device("cuda", torch.cuda.current_device())
    path, whole = record.open_record(args.results, record.describe(device))
    result = _result(whole, kind, () if args.again else getattr(args, "seconds", None) or ())
    try:
        text, status = run(args, device, result, lambda: _save(path, whole, kind, result))
    except testing.GpuLost as error:
        print(f"bench: the GPU was lost: {kind}, {error}", file=sys.stderr)
        return testing.GPU_LOST
    print(f"{text}\nwritten: {path}")
    return status


def _result(whole: Result, kind: str, anew: Iterable[str]) -> Result:
    """A table's part of the file merged with the top-level keys; the parts to measure anew are left out."""
    before = {name: value for name, value in whole["tables"].get(kind, {}).items() if name not in anew}
    return {**before, **{name: whole[name] for name in TOP if name in whole}}


def _save(path: Path, whole: Result, kind: str, result: Result) -> None:
    if "ceilings" in result:
        whole["ceilings"] = result["ceilings"]  # the first table measures them for all
    whole["tables"][kind] = {name: value for name, value in result.items() if name not in TOP}
    record.write(path, whole)


def of(whole: Result, kind: str) -> Result | None:
    """A table of a file as its own `run` gets it; None if the file has none."""
    return _result(whole, kind, ()) if kind in whole.get("tables", {}) else None
