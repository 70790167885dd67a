"""Tests of support/lost_gpu.py: after a test that loses the GPU, the other tests run in a new pytest-xdist worker."""

import os
import re
import subprocess
import sys
from pathlib import Path

import lost_gpu
import pytest
import torch

from atrous import testing

# After test 3 the process is marked as without a GPU: no other test may run in it.
TESTS = """
import lost_gpu, pytest
marked = []
lost_gpu.testing.gpu_lost = lambda: bool(marked)

@pytest.mark.parametrize("number", range(8))
def test(number):
    assert not marked, "in a process without a GPU"
    if number == 3:
        marked.append(number)
        assert False, "an illegal memory access"
"""


def run(folder, *options):
    (folder / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "lost_gpu", "-p", "no:cacheprovider", "-q", "-rf", *options]
    path = os.pathsep.join([str(Path(testing.__file__).parents[1]), str(Path(lost_gpu.__file__).parent)])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, folder], cwd=folder, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True
    )
    return done.returncode, done.stdout


@pytest.mark.gate
def test_a_new_worker_runs_the_remaining_tests(tmp_path):
    pytest.importorskip("xdist")
    status, out = run(tmp_path, "-n", "1")
    assert status == 1 and "an illegal memory access" in out and "crashed" in out
    assert "7 passed" in out, out
    assert set(re.findall(r"FAILED test_some.py::test\[(\d)\]", out)) == {"3"}


@pytest.mark.gate
def test_without_workers_the_run_ends(tmp_path):
    status, out = run(tmp_path)
    assert status == 1 and "3 passed" in out and "nothing runs on the GPU in this process any more" in out


def test_a_gpu_is_lost_when_it_does_not_synchronise(monkeypatch):
    def refuse():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", refuse)
    assert not testing.gpu_lost()  # nothing ran on a GPU
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert testing.gpu_lost()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not testing.gpu_lost()


@pytest.mark.parametrize("status", [1, testing.GPU_LOST])
def test_without_a_gpu_a_process_ends_before_destructors(status):
    """They may abort it, and its exit status would not be the one that says that another process may go on."""
    program = f"""
import atexit
from atrous import testing
atexit.register(print, "destructors")
print("first")
testing.exit_with({status})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, "destructors" in done.stdout) == (status, status != testing.GPU_LOST), done.stderr
    assert done.stdout.startswith("first\n")
