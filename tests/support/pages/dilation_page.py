"""Reads docs/dilation.md: its commands with the lines of their output that it shows. Run, it draws the page's pictures.

A block of the page is a command and, below it, lines of its output at 80 columns, in their order.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import documents

from atrous.tools import cli

PAGE = documents.ROOT / "docs" / "dilation.md"
START = "python -m atrous audit "


class Block(NamedTuple):
    command: str
    shown: list[str]

    @property
    def picture(self) -> Path | None:
        """The file that the command draws."""
        _, plot, rest = self.command.partition(" --plot ")
        return documents.ROOT / rest.split()[0] if plot else None


def blocks(text: str) -> list[Block]:
    answer = [code.splitlines() for language, code in documents.FENCED.findall(text) if not language]
    return [Block(lines[0], lines[1:]) for lines in answer if lines and lines[0].startswith(START)]


def run(command: str, picture: Path | None = None) -> tuple[int, list[str]]:
    """The exit status and the printed lines of a command, which draws into `picture` instead of its own file."""
    arguments = shlex.split(command)[3:]
    if picture:
        arguments[arguments.index("--plot") + 1] = str(picture)
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    columns = mock.patch.dict(os.environ, {"COLUMNS": "80"})
    with columns, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = cli.main(arguments)
    return status, printed.buffer.getvalue().decode().splitlines()


def wrong(shown: Iterable[str], printed: Iterable[str]) -> list[str]:
    """The shown lines that are not among the printed ones, in this order."""
    left = list(printed)
    missing = []
    for line in shown:
        if line in left:
            del left[: left.index(line) + 1]
        else:
            missing.append(line)
    return missing


if __name__ == "__main__":
    for block in blocks(PAGE.read_text()):
        if block.picture:
            run(block.command, block.picture)
            print(block.picture.relative_to(documents.ROOT))
