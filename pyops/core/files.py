"""Writes files whole: after an error, or a kill at any moment, a path has its old contents or the new ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from .checks import UsageError


def write(path: Path, content: str | bytes) -> None:
    """Writes a temporary file beside the path, flushed to the disk before it takes the name. Raises OSError.

    A link's target is replaced, and the link stays. A stream, /dev/stdout for example, has no name to take: the
    content is appended to it.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if _stream(path):
            _append(path, data)
        else:
            _replace(Path(os.path.realpath(path)), data)
    except OSError as error:  # a full disk names no file, and a folder that is not writable the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from error


def _append(path: Path, data: bytes) -> None:
    sys.stdout.flush()  # the lines that were printed before come first
    with open(path, "ab") as file:
        file.write(data)


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{threading.get_native_id()}.part")  # no two threads of a machine have one
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits for others that are in this block for the folder, so that none changes a file that one here has read."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def save(option: str, path: Path, content: str | bytes) -> None:
    """write(), whose errors name the option of the command line that asked for the file."""
    try:
        write(path, content)
    except OSError as error:
        raise UsageError(f"{option}: {error}") from error


def writable(option: str, path: Path | None) -> None:
    """Raises UsageError unless the file can be written. Called before the work, so that no result is lost."""
    if path is None:
        return
    folder = path.absolute().parent
    places = ([path] if path.exists() else []) + ([] if _stream(path) else [folder])
    why = ", which is a folder" if path.is_dir() else "" if folder.is_dir() else f": there is no folder {str(folder)!r}"
    if why or not all(os.access(place, os.W_OK) for place in places):
        raise UsageError(f"{option}: expected a file that can be written, got {str(path)!r}{why}")


def reason(error: Exception) -> str:
    """The error in one line; of the system's, without its number and the path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


def _stream(path: Path) -> bool:
    """True for a device or a pipe, and for the file that the standard output or error output goes to."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    return not stat.S_ISREG(there.st_mode) or any(os.path.samestat(there, output) for output in _outputs())


def _outputs() -> Iterator[os.stat_result]:
    for number in (1, 2):
        with contextlib.suppress(OSError):  # it may be closed
            yield os.fstat(number)
