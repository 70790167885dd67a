"""Tests of support/failures_at_once.py: a run that hangs and is killed leaves the tracebacks of its failures."""

import os
import shlex
import sys
from pathlib import Path

import failures_at_once
import pytest

from bench.gpu import process_group
from bench.gpu import steps as plan

# One test fails; the other hangs as in a driver, where a signal does not end it.
TESTS = """
import signal, time

def test_fails():
    value = 41
    assert value == 42, "a wrong answer"

def test_hangs():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)
"""
LIMIT = 10.0  # seconds: interrupted after 5, when both workers have begun, and killed after 10


def hanging(folder: Path, conftest: str) -> str:
    """The log of the two tests in two workers, killed by .ci/gpu's runner."""
    pytest.importorskip("xdist")
    (folder / "test_some.py").write_text(TESTS)
    (folder / "conftest.py").write_text(conftest)
    command = [sys.executable, "-m", "pytest", "-n", "2", "-v", "--tb", "short", "-p", "no:cacheprovider"]
    variables = {"PYTHONPATH": str(Path(failures_at_once.__file__).parent), "PYTEST_ADDOPTS": ""}
    here = ["--rootdir", str(folder), str(folder)]
    with (folder / "log").open("wb") as log:
        status, late = process_group.run(shlex.join([*command, *here]), LIMIT, log, variables)
    assert late and status
    return (folder / "log").read_text()


@pytest.mark.gate
def test_a_run_that_was_killed_has_printed_its_failures(tmp_path):
    out = hanging(tmp_path, "from failures_at_once import register as pytest_configure\n")
    assert "AssertionError: a wrong answer" in out and "test_some.py::test_fails, call" in out, out


def test_a_worker_prints_nothing():
    class Config:
        workerinput = None

    failures_at_once.register(Config())  # it has no plugin manager either


def test_the_tests_on_a_gpu_print_their_failures_at_once(request):
    steps = [step for phase in plan.PHASES for step in plan.steps(phase, "python", Path(os.devnull), None)]
    commands = [step.command for step in steps if "-m pytest" in step.command]
    assert len(commands) == 5 and all("--failures-at-once" in command for command in commands)
    assert request.config.getoption("--failures-at-once") in (True, False)  # conftest.py has the option
