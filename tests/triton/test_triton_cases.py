"""Runs every case of docs/cases.md on the backend `triton` in Triton's interpreter; `.ci/gpu right` does on a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton_cases as cases  # noqa: E402

TESTS = Path(__file__).parents[1]


@pytest.mark.gate
@pytest.mark.skipif(cases.INTERPRETING, reason="already in the interpreter's process")
def test_every_case_under_the_interpreter(capsys):
    files = sorted(str(path) for path in TESTS.rglob("test_cases_*.py"))
    cases.interpret(*files, capsys=capsys, least=400, only=cases.INTERPRETED)


@pytest.mark.gate
@pytest.mark.skipif(cases.INTERPRETING, reason="already in the interpreter's process")
def test_the_sanitizer_s_launches():
    command = [sys.executable, str(TESTS / "support" / "kernels" / "launches.py")]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"^(\d+) launches, 0 failed$", run.stdout, re.MULTILINE)[1]) > 60
