"""Writes docs/reliability.md from the results files in docs/reliability/.

    python tests/support/reliability/page.py [--run]

--run: runs the cases of docs/cases.md on every backend of a CPU first, for cases*.json, and takes the results files of
`make fuzz` and `make opinfo-all` from out/, where there are any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / "support" / name) for name in (".", "kernels"))]

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
    lines = [
        START,
        *cases.lines(cases.merged(sorted(RESULTS.glob("cases*.json")))),
        "",
        "## What was drawn",
        "",
        SOURCES,
    ]
    for title, (table, file) in SECTIONS.items():
        written = table(RESULTS / file) if (RESULTS / file).exists() else ["Not run for this page."]
        lines += ["", f"### {title}", "", *written]
    newest = versions.newest()
    lines += [
        "",
        "## Versions",
        "",
        "Made by `make versions`: " + versions.described(newest),
        "",
        *versions.table(newest),
    ]
    return "\n".join(lines) + "\n"


def run_cases() -> None:
    """Writes cases.json and, of Triton in its interpreter, cases-triton.json. Raises CalledProcessError."""
    import triton_cases

    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_cases_*.py"))
    kinds = {"cases.json": ([], {}), "cases-triton.json": (["-k", triton_cases.INTERPRETED], {"TRITON_INTERPRET": "1"})}
    for name, (options, variables) in kinds.items():
        outcomes = ["-p", "reliability.record", "--outcomes", str(RESULTS / name)]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "auto",
            "--maxprocesses",
            "4",
            *outcomes,
            *options,
            *files,
        ]
        subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)


def take_drawn() -> None:
    for _, file in SECTIONS.values():
        if (ROOT / "out" / file).exists():
            shutil.copy(ROOT / "out" / file, RESULTS / file)


if __name__ == "__main__":
    if sys.argv[1:] == ["--run"]:
        run_cases()
        take_drawn()
    PAGE.write_text(text())
