"""Runs a phase of .ci/gpu step by step (steps.py) and keeps what each did in the file of the day (bench/record.py).

    .ci/gpu bundle|right|fast|full [RESULTS_DIR] [--dry-run] [--limit SECONDS]

RESULTS_DIR is bench/results by default, out for `bundle`. --dry-run prints each step's limit and command, with a GPU or
without. --limit: no step gets more than so many seconds. ATROUS_BUNDLE names the bundle to install (default: the newest
in out/), ATROUS_COMMIT the commit where there is no .git. Exit status: the worst of all steps, 124 for one that was too
slow and 128 + N for one that signal N killed; 2 for bad arguments, 3 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import steps as plan
from phase import SIGNALLED, Phase, record
from process_group import adopt_orphans


def probe(python: str) -> dict[str, Any] | None:
    """Where this runs, as the torch of `python` says; None where that has no GPU."""
    done = subprocess.run([python, str(record.ROOT / "bench" / "record.py")], capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else None


def refused(text: str, status: int = 2) -> int:
    print(f".ci/gpu {text}", file=sys.stderr)
    return status


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise SystemExit(refused(f"bundle|right|fast|full [RESULTS_DIR] [--dry-run] [--limit SECONDS]: {message}"))


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog=".ci/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", metavar="bundle|right|fast|full")
    parser.add_argument("results", type=Path, nargs="?", metavar="RESULTS_DIR")
    parser.add_argument("--dry-run", action="store_true", help="print the limit and the command of each step")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="of each step, where that is less than its own")
    args = parser.parse_args(argv)
    if args.phase in plan.NOW:
        parser.error(f"'{args.phase}' is now part of '{plan.NOW[args.phase]}'")
    if args.phase not in plan.PHASES:
        parser.error(f"expected a phase, got {args.phase!r}")
    if args.limit is not None and not args.limit > 0:
        parser.error(f"--limit: expected a positive number of seconds, got {args.limit:g}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(sys.argv[1:] if argv is None else argv)
    wanted = os.environ.get("PYTHON") or sys.executable
    python = shutil.which(wanted)
    if python is None:
        return refused(f"{args.phase}: PYTHON: expected a Python, got {wanted!r}")
    results = (args.results or record.ROOT / ("out" if args.phase == "bundle" else "bench/results")).absolute()
    steps = plan.steps(args.phase, str(Path(python).absolute()), results, record.bundle())
    if args.dry_run:
        print(*(f"{step.limit:>5} s  {step.command}" for step in steps), sep="\n")
        print(f"{sum(step.limit for step in steps):>5} s  in all")
        return 0
    about = probe(python) if args.phase != "bundle" else record.about("no GPU", {})
    if about is None:
        return refused(f"{args.phase}: no NVIDIA GPU that the torch of {wanted} can use", 3)
    if args.limit:
        steps = [plan.replace(step, limit=min(step.limit, args.limit)) for step in steps]
    adopt_orphans()
    path, whole = record.opened(results, about)
    record.write(path, whole)
    phase = Phase(args.phase, steps, path, about["commit"])
    phase.log.unlink(missing_ok=True)
    most = sum(step.limit for step in steps)
    print(f".ci/gpu {args.phase}: {about['device']}, at most {most:g} s; {phase.log}", flush=True)
    status = phase.run()
    print(f"written: {path}")
    return status


def stopped(number: int, frame: Any) -> None:
    raise SystemExit(SIGNALLED + number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stopped)
    sys.exit(main())
