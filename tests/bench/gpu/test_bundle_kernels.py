"""Triton uses the kernels of a bundle; a process under the stand-in driver, which needs no GPU, reports them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.bundle import archive as bundle_archive

ROOT = Path(__file__).parents[3]

PROGRAM = """
import torch, triton
import triton.language as tl

@triton.jit
def kernel(x_ptr, SIZE: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, SIZE), 0.0)

kernel[(1,)](torch.empty(64, device="cuda"), SIZE=64)
"""


def under_standin(reports: Path, cache: Path) -> dict[str, str]:
    """The environment of a process under the stand-in driver, which reports its kernels in the folder `reports`."""
    path = os.pathsep.join([str(ROOT / "tests/support/standin/standin_site"), os.environ.get("PYTHONPATH", "")])
    chip = {"STANDIN_CHIP": "90", "STANDIN_ASKED": str(reports)}
    return os.environ | chip | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache)}


def report(tmp_path: Path, cache: Path) -> dict:
    """The report of a process that launches one kernel under the stand-in driver."""
    (program := tmp_path / "program.py").write_text(PROGRAM)
    reports = tmp_path / "reports"
    reports.mkdir()
    subprocess.run([sys.executable, program], check=True, env=under_standin(reports, cache))
    (path,) = reports.iterdir()
    result = json.loads(path.read_text())
    path.unlink(), reports.rmdir()
    return result


@pytest.mark.gate
def test_triton_finds_its_kernels_at_another_place(tmp_path):
    pytest.importorskip("triton")
    first = report(tmp_path, tmp_path / "first")
    assert "kernel" in first["compiled"] and first["launched"] == 1
    keys = {*first["kernels"], *first["modules"]}
    bundle_archive.copy_entries(tmp_path / "first", keys, tmp_path / "content" / "triton")
    (tmp_path / "content" / "bundle.json").write_text("{}")
    bundle_archive.pack(tmp_path / "content", tmp_path / "bundle.tar.xz")
    (tmp_path / "first").rename(tmp_path / "gone")
    assert "kernel" in report(tmp_path, tmp_path / "gone")["compiled"]  # Triton ignores a moved cache
    bundle_archive.restore_entries(bundle_archive.open_archive(tmp_path / "bundle.tar.xz")[0], tmp_path / "second")
    second = report(tmp_path, tmp_path / "second")
    assert second["compiled"] == [] and second["kernels"] == first["kernels"] and second["launched"] == 1


TESTS = """
import pytest, torch

def test_on_the_gpu():
    x = torch.full((3,), 2.0, device="cuda")
    assert x.is_cuda and x.sum().item() == 6.0, "the stand-in has no values"
    raise SystemError("the test went on")
"""


@pytest.mark.gate
def test_assertions_do_not_end_a_test_under_the_stand_in(tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "standin_pytest", "-p", "no:cacheprovider", "test_it.py"]
    run = subprocess.run(command, cwd=tmp_path, env=under_standin(tmp_path, tmp_path), capture_output=True, text=True)
    assert "SystemError: the test went on" in run.stdout and "AssertionError" not in run.stdout


DEFAULT_DEVICE = """
import torch
torch.set_default_device("cuda")
tensors = torch.randn(4, 3), torch.tensor([1.0, 2.0]), torch.nn.Conv2d(1, 2, 3).weight
assert all(x.is_cuda and x.device.type == "cuda" and not x.is_meta for x in tensors)
assert torch.allclose(tensors[0], tensors[0]) and torch.equal(tensors[1], tensors[1])
with torch.random.fork_rng():
    assert not torch.ones(2, device="cpu").is_cuda
"""


@pytest.mark.gate
def test_tensors_on_the_default_device_under_the_stand_in(tmp_path):
    """The tests' `--device cuda` sets the default device, a torch function mode that looks up attributes by name."""
    pytest.importorskip("triton")
    subprocess.run([sys.executable, "-c", DEFAULT_DEVICE], check=True, env=under_standin(tmp_path, tmp_path))
