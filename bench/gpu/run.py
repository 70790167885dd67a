"""Run a phase of .ci/gpu (its steps are in steps.py) and record each step in the results file (bench/record.py).

    .ci/gpu bundle|right|fast|full [RESULTS_DIR] [--dry-run] [--limit SECONDS]

RESULTS_DIR is bench/results by default, out for `bundle`. --dry-run prints each step's limit and command, and checks
that the bundle, if there is one, is of these sources; it needs no GPU. --limit: upper bound of every step's seconds.

A step is interrupted (SIGINT) 5 seconds before its limit; at the limit it is killed with all of its processes. One that
ends with status 75 has lost the GPU by a sticky CUDA error: it goes on in a new process, by --continue, and counts as
failed. ATROUS_BUNDLE names the bundle that `right` and `fast` install (default: the newest in out/; "none": the
checkout is installed), ATROUS_COMMIT the commit if there is no .git. Exit status: the worst of all steps, 124 for one
that reached its limit and 128 + N for one that signal N killed; 2 for bad arguments, no bundle, or in a dry run one of
other sources; 3 without a GPU.
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

from bench.gpu import steps as plan
from bench.gpu.bundle import facts
from bench.gpu.bundle.archive import manifest
from bench.gpu.phase import SIGNALLED, Phase, record
from bench.gpu.process_group import adopt_orphans

PROBE_SECONDS = 60.0
NO_GPU = 3  # exit status, of record.py too
NO_BUNDLE = record.ROOT / "out" / "gpu-bundle-*.tar.xz"  # shown by a dry run if there is no bundle
USAGE = "usage: .ci/gpu bundle|right|fast|full [RESULTS_DIR] [--dry-run] [--limit SECONDS]"


def probe(python: str) -> dict[str, Any] | str:
    """The machine's description by the torch of `python`; a sentence if it has no GPU or does not answer."""
    command = [python, "-m", "bench.record"]
    process = subprocess.Popen(command, cwd=record.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, errors = process.communicate(timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # not waited for: a process that hangs in the driver may never end
        return f"the torch of {python} did not answer within {PROBE_SECONDS:g} s"
    if process.returncode == 0:
        return json.loads(out.strip().splitlines()[-1])
    if process.returncode == NO_GPU:
        return f"no NVIDIA GPU that the torch of {python} can use"
    lines = errors.strip().splitlines() or [f"exit status {process.returncode}"]
    return f"expected {python} to describe its GPU, got {lines[-1]}"


def bundle(phase: str) -> Path | None:
    """The archive to install; None for the checkout. `right` and `fast` take the checkout only with ATROUS_BUNDLE=none:
    if csrc is not built there, half of their tests are skipped."""
    if os.environ.get("ATROUS_BUNDLE") == "none":
        return None
    return record.bundle() or (NO_BUNDLE if phase in plan.OFFLINE else None)


def check_bundle(phase: str, archive: Path | None) -> int:
    """Returns 2, with a line on stderr, if the bundle that the phase would install exists and is of another tree."""
    if phase == "bundle" or archive is None or not archive.exists():
        return 0
    try:
        facts.require_source(manifest(archive))
    except facts.BundleError as error:
        return fail(f"{phase}: {archive}: {error}")
    return 0


def fail(text: str, status: int = 2) -> int:
    print(f".ci/gpu {text}", file=sys.stderr)
    return status


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"{USAGE}: {message}", file=sys.stderr)
        raise SystemExit(2)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog=".ci/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", metavar="bundle|right|fast|full")
    parser.add_argument("results", type=Path, nargs="?", metavar="RESULTS_DIR")
    parser.add_argument("--dry-run", action="store_true", help="print the limit and the command of each step")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="upper bound of every step's limit")
    args = parser.parse_args(argv)
    if args.phase in plan.REPLACED:
        parser.error(f"'{args.phase}' is now part of '{plan.REPLACED[args.phase]}'")
    if args.phase not in plan.PHASES:
        parser.error(f"expected a phase, got {args.phase!r}")
    if args.limit is not None and not args.limit > 0:
        parser.error(f"--limit: expected a positive number of seconds, got {args.limit:g}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(sys.argv[1:] if argv is None else argv)
    name = os.environ.get("PYTHON") or sys.executable
    python = shutil.which(name)
    if python is None:
        return fail(f"{args.phase}: PYTHON: expected a Python, got {name!r}")
    results = (args.results or record.ROOT / ("out" if args.phase == "bundle" else "bench/results")).absolute()
    archive = bundle(args.phase)
    steps = plan.steps(args.phase, str(Path(python).absolute()), results, archive)
    if args.dry_run:
        print(*(f"{step.limit:>5} s  {step.command}" for step in steps), sep="\n")
        print(f"{sum(step.limit for step in steps):>5} s  in all")
        return check_bundle(args.phase, archive)
    about = probe(python) if args.phase != "bundle" else record.about("no GPU", {})
    if isinstance(about, str):
        return fail(f"{args.phase}: {about}", NO_GPU)
    if archive == NO_BUNDLE:
        return fail(f"{args.phase}: expected a bundle in out/ or in ATROUS_BUNDLE (none: the checkout), got none")
    if args.limit:
        steps = [plan.replace(step, limit=min(step.limit, args.limit)) for step in steps]
    adopt_orphans()
    path, whole = record.open_record(results, about)
    record.write(path, whole)
    phase = Phase(args.phase, steps, path, about["commit"], about["date"])
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
