"""Writes docs/reliability.md from the results files in docs/reliability/: `python tests/support/reliability/page.py`.

`make reliability` runs what makes these files and then this; a test holds the page to the files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from reliability import cases, drawn, versions  # noqa: E402

RESULTS = ROOT / "docs" / "reliability"
PAGE = ROOT / "docs" / "reliability.md"
START = """# What was tried

This page is written by `make reliability` from the results files in `docs/reliability/`. Every comparison is with plain
torch, called the same way, and its error is measured against fp64. On a GPU nothing has run yet: the table of README.md
says what has been checked without one.

## Cases by backend

Each line is a test of [cases.md](cases.md), each count the combinations of its parameters. *same*: values, gradients,
statistics, dtype, strides and exceptions are those of plain torch, within the error budget of `atrous.testing`.
*refused*: the call raises the type of exception that torch raises, and its message names the argument. *n/a*: the test
does not apply to the backend, for the reason of that number."""


SECTIONS: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "Random calls and models": (drawn.fuzz_lines, "fuzz.json"),
    "Random calls of csrc/cuda, compiled as C++ for the CPU": (drawn.fuzz_lines, "fuzz-emulation.json"),
    "PyTorch's own samples": (drawn.opinfo_lines, "opinfo.json"),
    "PyTorch's own samples, Triton in its interpreter": (drawn.opinfo_lines, "opinfo-triton.json"),
}
SOURCES = """Made by `make fuzz` and `make opinfo-all`. A case of *known* is over the budget for the reason that
[differences.md](differences.md) gives, and at most twice as large."""


def text() -> str:
    lines = [START, *cases.lines(cases.merged(sorted(RESULTS.glob("cases*.json")))), "", "## What was drawn", "", SOURCES]
    for title, (table, file) in SECTIONS.items():
        lines += ["", f"### {title}", "", *table(RESULTS / file)]
    newest = versions.newest()
    lines += ["", "## Versions", "", "Made by `make versions`: " + versions.described(newest), "", *versions.table(newest)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
