"""The run of one phase of .ci/gpu: its steps, one after the other, and what each did, in the file of the day."""

from __future__ import annotations

import contextlib
import datetime
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import record  # noqa: E402
from bench.gpu import process_group  # noqa: E402
from bench.gpu import steps as plan  # noqa: E402

TAIL = 25  # lines of a failed step's output to show
MIDDLE = 30.0  # seconds into a step, or half its limit: the GPU is at work, as it is not between steps
TIMED_OUT, SIGNALLED = 124, 128  # exit statuses, as timeout(1) and the shell have them
Entry = dict[str, Any]


@contextlib.contextmanager
def at_work(entry: Entry, seconds: float) -> Iterator[None]:
    """Notes clocks, temperature and power as they are so many seconds into a step, if it is still running then."""
    found: dict[str, str] = {}
    timer = threading.Timer(seconds, lambda: found.update(record.sensors()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if found:
            entry["gpu_during"] = dict(found)


class Phase:
    """The steps of one run of a phase, in the file of the day."""

    def __init__(self, name: str, steps: list[plan.Step], path: Path, commit: str, date: str):
        self.name, self.steps, self.path = name, steps, path
        self.log = path.with_name(f"{path.stem}-{name}.log")
        # A distribution's own Python refuses pip otherwise; nothing of the distribution's is replaced.
        self.variables = {"ATROUS_COMMIT": commit, "ATROUS_DATE": date, "PIP_BREAK_SYSTEM_PACKAGES": "1"}
        if name in plan.OFFLINE:
            self.variables["PIP_NO_INDEX"] = "1"
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
                with at_work(entry, min(step.limit / 2, MIDDLE)):
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
            status, late = process_group.run(step.command, step.limit, log, self.variables)
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
