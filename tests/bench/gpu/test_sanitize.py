"""Tests of bench.gpu.sanitize with a fake compute-sanitizer: a missing or refusing tool, and real errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.steps import NOT_AVAILABLE

ROOT = Path(__file__).parents[3]

REFUSAL = "========= Error: Device not supported"
# The fake tool. Its arguments: --tool T --error-exitcode 1 PYTHON, then -c PROBE, or -u and the program.
TOOL = '#!/bin/sh\nif [ "$6" = -c ]; then {probe}; else {run}; fi\n'


def sanitize(folder, probe="exit 0", run='shift 4; exec "$@"', program="print('launched')", tool=True):
    (folder / "program.py").write_text(program)
    if tool:
        (folder / "compute-sanitizer").write_text(TOOL.format(probe=probe, run=run))
        (folder / "compute-sanitizer").chmod(0o755)
    command = [sys.executable, "-m", "bench.gpu.sanitize", "memcheck", str(folder / "program.py")]
    environment = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin", "PYTHON": sys.executable, "CUDA_HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


def test_the_program_runs_under_the_tool(tmp_path):
    program = "import os; print('caching', os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'])"
    assert sanitize(tmp_path, program=program) == (0, "caching 1\n")


def test_a_machine_that_the_tool_refuses_is_not_a_failure(tmp_path):
    status, out = sanitize(tmp_path, probe=f'echo "{REFUSAL}"; echo "cuMemAlloc_v2 answers 999"; exit 1')
    assert status == NOT_AVAILABLE and out.count("\n") == 1
    assert "does not work here: Error: Device not supported; cuMemAlloc_v2 answers 999" in out


@pytest.mark.parametrize("status", [1, 139])
def test_a_refusal_in_the_output_of_a_run_hides_no_error(tmp_path, status):
    """Once the probe passes, every failure of the tool or the program counts, whatever its output."""
    assert sanitize(tmp_path, run=f'echo "{REFUSAL}"; exit {status}')[0] == status


def test_a_program_cannot_say_that_the_tool_is_missing(tmp_path):
    """A program whose own exit status is 77 has failed."""
    assert sanitize(tmp_path, program=f"raise SystemExit({NOT_AVAILABLE})")[0] == 1


@pytest.mark.skipif(Path("/usr/local/cuda/bin/compute-sanitizer").exists(), reason="compute-sanitizer is installed")
def test_a_tool_that_is_not_installed(tmp_path):
    status, out = sanitize(tmp_path, tool=False)
    assert status == NOT_AVAILABLE and "compute-sanitizer is not on the PATH" in out
