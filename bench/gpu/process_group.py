"""Run one command in a process group of its own with a time limit; .ci/gpu runs its steps with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
GRACE = 5.0  # seconds before its limit a command gets SIGINT, so that pytest reports its failures


def run(line: str, limit: float, log: BinaryIO, variables: dict[str, str]) -> tuple[int, bool]:
    """Runs a line of bash. Returns its exit status (-N for signal N), and True if it reached its limit.

    Any process of the group that still runs afterwards is killed: no step may leave work on the GPU to the next one.
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
    """Kills the process's group and waits at most `seconds` for it; a process that hangs in the driver never ends."""
    until = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired, ChildProcessError):
        process.wait(seconds)
        while time.monotonic() < until:  # until no child of this process is in the group
            if os.waitpid(-process.pid, os.WNOHANG)[0] == 0:
                time.sleep(0.01)


def adopt_orphans() -> None:
    """Makes this process the parent of orphaned descendants, so that it can wait for them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
