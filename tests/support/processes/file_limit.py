"""Conditions under which files are written: a limit that stops a write as a full disk does, and a kill."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Inside, no file grows beyond `size` bytes. Python ignores the signal, so that the write raises OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    """name -> contents of every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def in_child(call: Callable[[], object]) -> int:
    """Runs a function in a forked process, which must not use torch's threads; returns the status that it ends with:
    0, 1 after an exception, or the negative number of the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_in(step: str, call: Callable[[], object]) -> None:
    """Runs a function in a process that kills itself as it reaches os.fsync or os.replace."""

    def kill(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    def run():
        setattr(os, step, kill)
        call()

    assert in_child(run) == -signal.SIGKILL
