"""Run the steps of one phase of .ci/gpu in order, and record the outcome of each in the results file."""

from __future__ import annotations

import contextlib
import datetime
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import record
from bench.gpu import process_group
from bench.gpu import steps as plan

TAIL = 25  # lines of a failed step's output to show
SENSOR_DELAY = 30.0  # seconds into a step (at most half its limit) at which the GPU under load is sampled
TIMED_OUT, SIGNALLED = 124, 128  # exit statuses, as in timeout(1) and the shell
LEAST = 10.0  # seconds that a process needs to start and to measure something
Entry = dict[str, Any]


@contextlib.contextmanager
def sample_sensors(entry: Entry, seconds: float) -> Iterator[None]:
    """Records clocks, temperature and power that many seconds into a step, if it still runs then."""
    sensors: dict[str, str] = {}
    timer = threading.Timer(seconds, lambda: sensors.update(record.sensors()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if sensors:
            entry["gpu_during"] = dict(sensors)


def continued(command: str, spent: float) -> str:
    """The command that goes on where another process of it lost the GPU, with what is left of its --seconds."""
    seconds = re.search(r"--seconds (\d+)", command)
    rest = f" --seconds {max(1, int(int(seconds[1]) - spent))}" if seconds else ""  # the last of two counts
    return f"{command} --continue{rest}"


def after_losses(entry: Entry, lost: list[str]) -> Entry:
    """The outcome of a step whose earlier processes lost the GPU: a failure, with all that lost it as the reason."""
    reasons = [*lost, *([entry["reason"]] if "reason" in entry else [])]
    state = "failed" if entry["state"] == "passed" else entry["state"]
    return {**entry, "state": state, "exit_status": entry["exit_status"] or plan.GPU_LOST, "reason": "; ".join(reasons)}


class Phase:
    """One run of a phase, recorded in the results file."""

    def __init__(self, name: str, steps: list[plan.Step], path: Path, commit: str, date: str):
        self.name, self.steps, self.path = name, steps, path
        self.log = path.with_name(f"{path.stem}-{name}.log")
        # Allows pip in a distribution's own Python; only the package atrous is installed.
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
        """Reads the file again before writing, since a step may have added its rows."""
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
                with sample_sensors(entry, min(step.limit / 2, SENSOR_DELAY)):
                    entry.update(self.outcome(step))
            except SystemExit as stop:  # a signal to this process; the step's process group is already killed
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
        """Runs a step, and again with --continue as often as it loses the GPU, all within its limit."""
        begun, command, left, lost = time.monotonic(), step.command, float(step.limit), []
        while (entry := self.execute(step, command, left))["exit_status"] == plan.GPU_LOST:
            spent = time.monotonic() - begun
            if (left := step.limit - spent) < LEAST:
                break
            lost.append(entry["reason"])
            command = continued(step.command, spent)
        entry["seconds"] = round(time.monotonic() - begun, 2)
        return after_losses(entry, lost) if lost else entry

    def execute(self, step: plan.Step, command: str, limit: float) -> Entry:
        """Runs a command of a step. Returns its state, exit status, and the last line that it printed as the reason."""
        with self.log.open("ab") as log:
            log.write(f"\n== {step.name}: {command}\n".encode())
            log.flush()
            start = log.tell()
            status, late = process_group.run(command, limit, log, self.variables)
        entry, lines = {"exit_status": status, "log_from": start}, self.output(start)
        if late:
            return {**entry, "state": "timed out", "exit_status": TIMED_OUT, "reason": f"its {step.limit} s were over"}
        if status < 0:
            name = signal.Signals(-status).name
            return {**entry, "state": "killed", "exit_status": SIGNALLED - status, "reason": f"killed by {name}"}
        if status == plan.NOT_AVAILABLE and step.optional:
            return {**entry, "state": "not available", "exit_status": 0, "reason": lines[-1] if lines else ""}
        if status:
            return {**entry, "state": "failed", "reason": lines[-1] if lines else f"exit status {status}"}
        return {**entry, "state": "passed"}

    def output(self, start: int) -> list[str]:
        """The last non-empty lines of the log after this offset."""
        with self.log.open("rb") as log:
            log.seek(max(start, self.log.stat().st_size - 20_000))
            return [line for line in log.read().decode(errors="replace").splitlines() if line.strip()][-TAIL:]

    def show(self, step: plan.Step, entry: Entry) -> None:
        reason = f": {entry['reason']}" if entry.get("reason") else ""
        print(f"{entry['state']:<13} {entry['seconds']:>7.1f} of {step.limit} s  {step.name}{reason}", flush=True)
        if entry["state"] in ("failed", "timed out", "killed"):
            print(*(f"    {line[:200]}" for line in self.output(entry["log_from"])), sep="\n", flush=True)
