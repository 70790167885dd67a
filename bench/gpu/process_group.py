"""One command in a process group of its own, with a limit: what .ci/gpu runs a step with."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]
GRACE = 5.0  # seconds before its limit, a command is interrupted: pytest then tells its failures


def run(line: str, limit: float, log: BinaryIO, variables: dict[str, str]) -> tuple[int, bool]:
    """Runs a line of bash: its exit status (-N for signal N), and whether it was late.

    Whatever still runs of the group at the end of it is killed: no step may leave work on the GPU to the next one.
    """
    process = subprocess.Popen(
        ["bash", "-c", line], cwd=ROOT, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=log,
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
        end(process)
    return process.returncode or 0, late


def end(process: subprocess.Popen, seconds: float = 2.0) -> None:
    """Kills what is left of the process's group and waits until it is gone; one that hangs in the driver never is."""
    until = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.02)
