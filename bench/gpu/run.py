"""Runs a phase of .ci/gpu step by step (steps.py) and keeps what each did in the file of the day (bench/record.py).

    .ci/gpu bundle|right|fast|full [RESULTS_DIR] [--dry-run] [--limit SECONDS]

RESULTS_DIR is bench/results by default, out for `bundle`. --dry-run prints each step's limit and command, with a GPU or
without. --limit: no step gets more than so many seconds. ATROUS_BUNDLE names the bundle to install (default: the newest
in out/), ATROUS_COMMIT the commit where there is no .git. Exit status: the worst of all steps, 124 for one that was too
slow and 128 + N for one that signal N killed; 2 for bad arguments, 3 where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import record  # noqa: E402
import steps as plan  # noqa: E402

GRACE = 5.0  # seconds before its limit, a step is asked to stop: pytest then tells its failures
TAIL = 25  # lines of a failed step's output to show
TIMED_OUT, SIGNALLED = 124, 128  # exit statuses, as timeout(1) and the shell have them
Entry = dict[str, Any]


class Phase:
    """The steps of one run of a phase, in the file of the day."""

    def __init__(self, name: str, steps: list[plan.Step], path: Path, log: Path):
        self.name, self.steps, self.path, self.log = name, steps, path, log
        self.entries: list[Entry] = [
            {
                "name": step.name,
                "limit_s": step.limit,
                "command": step.command,
                "state": "not reached",
                "exit_status": 0,
            }
            for step in steps
        ]
        self.started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")

    def save(self) -> None:
        """A step may have written its rows into the file, so it is read again."""
        whole = record.read(self.path)
        whole["phases"][self.name] = {"started": self.started, "exit_status": self.status(), "steps": self.entries}
        record.write(self.path, whole)

    def status(self) -> int:
        pairs = zip(self.steps, self.entries)
        return max((entry["exit_status"] for step, entry in pairs if not step.informative), default=0)

    def run(self) -> int:
        before = record.sensors()
        for step, entry in zip(self.steps, self.entries):
            entry.update(state="running", gpu_before=before)
            self.save()
            try:
                entry.update(self.outcome(step))
            except SystemExit as stop:  # a signal to this process: the step's group is killed by now
                entry.update(state="interrupted", exit_status=stop.code)
                self.save()
                raise
            before = entry["gpu_after"] = record.sensors()
            self.save()
            self.show(step, entry)
            if step.required and entry["exit_status"]:
                break
        return self.status()

    def outcome(self, step: plan.Step) -> Entry:
        """Runs a step; how it ended, and the last line that it printed."""
        begun = time.monotonic()
        with self.log.open("ab") as log:
            log.write(f"\n== {step.name}: {step.command}\n".encode())
            log.flush()
            start = log.tell()
            status, late = command(step.command, step.limit, log, {"PIP_NO_INDEX": "1"} if self.offline else {})
        found: Entry = {"seconds": round(time.monotonic() - begun, 2), "exit_status": status, "log_from": start}
        told = self.output(start)
        if late:
            return {**found, "state": "timed out", "exit_status": TIMED_OUT, "reason": f"its {step.limit} s were over"}
        if status < 0:
            name = signal.Signals(-status).name
            return {**found, "state": "killed", "exit_status": SIGNALLED - status, "reason": f"killed by {name}"}
        if status == plan.NOT_AVAILABLE and step.optional:
            return {**found, "state": "not available", "exit_status": 0, "reason": told[-1] if told else ""}
        if status:
            return {**found, "state": "failed", "reason": told[-1] if told else f"exit status {status}"}
        return {**found, "state": "passed"}

    @property
    def offline(self) -> bool:
        return self.name in plan.OFFLINE

    def output(self, start: int) -> list[str]:
        """What the log holds from there: its last lines that are not empty."""
        with self.log.open("rb") as log:
            log.seek(max(start, self.log.stat().st_size - 20_000))
            return [line for line in log.read().decode(errors="replace").splitlines() if line.strip()][-TAIL:]

    def show(self, step: plan.Step, entry: Entry) -> None:
        reason = f": {entry['reason']}" if entry.get("reason") else ""
        print(f"{entry['state']:<13} {entry['seconds']:>7.1f} of {step.limit} s  {step.name}{reason}", flush=True)
        if entry["state"] in ("failed", "timed out", "killed"):
            print(*(f"    {line[:200]}" for line in self.output(entry["log_from"])), sep="\n", flush=True)


def command(line: str, limit: float, log: Any, variables: dict[str, str]) -> tuple[int, bool]:
    """Runs a line of bash in a process group of its own: its exit status (-N for signal N), and whether it was late.

    Whatever still runs of the group at the end of it is killed: no step may leave work on the GPU to the next one.
    """
    process = subprocess.Popen(
        ["bash", "-c", line], cwd=record.ROOT, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=log,
        stderr=subprocess.STDOUT, preexec_fn=os.setpgrp,
    )  # fmt: skip
    late = False
    try:
        process.wait(max(limit - GRACE, limit / 2))
    except subprocess.TimeoutExpired:
        late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit - max(limit - GRACE, limit / 2))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the driver does not even die: go on
        process.wait(GRACE)
    return process.returncode or 0, late


def probe(python: str) -> Entry | None:
    """Where this runs, as the torch of `python` says; None where that has no GPU."""
    done = subprocess.run([python, str(record.ROOT / "bench" / "record.py")], capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else None


def bundle() -> Path | None:
    named = os.environ.get("ATROUS_BUNDLE")
    if named:
        return Path(named).absolute()
    found = sorted((record.ROOT / "out").glob("gpu-bundle-*.tar.*"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


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
    steps = plan.steps(args.phase, str(Path(python).absolute()), results, bundle())
    if args.dry_run:
        print(*(f"{step.limit:>5} s  {step.command}" for step in steps), sep="\n")
        print(f"{sum(step.limit for step in steps):>5} s  in all")
        return 0
    about = probe(python) if args.phase != "bundle" else record.about("bundle", {})
    if about is None:
        return refused(f"{args.phase}: no NVIDIA GPU that the torch of {wanted} can use", 3)
    if args.limit:
        steps = [plan.replace(step, limit=min(step.limit, args.limit)) for step in steps]
    path, whole = record.opened(results, about)
    record.write(path, whole)
    phase = Phase(args.phase, steps, path, path.with_name(f"{path.stem}-{args.phase}.log"))
    phase.log.unlink(missing_ok=True)
    print(f".ci/gpu {args.phase}: {len(steps)} steps on {about['device']}; {phase.log}", flush=True)
    status = phase.run()
    print(f"written: {path}")
    return status


def stopped(number: int, frame: Any) -> None:
    raise SystemExit(SIGNALLED + number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stopped)
    sys.exit(main())
