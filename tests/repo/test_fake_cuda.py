"""Tests of `--device cuda` on a fake device (support/fake_cuda.py), which raises the errors that a GPU would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# torch.compile, torch.export and FakeTensor do not accept the fake tensors; a CPU accumulates in fp16 where a GPU does
# in fp32. In plain torch, too, the gradient of a sum's second term and circular pads are on the CPU and `.data =` has
# no effect; a fake tensor has no tolist().
SKIPPED = (
    "compile or export or opcheck or fakes or python_defines or (native and float16) "
    "or only_some_inputs or circular or swapped or not_finite or empty_results"
)
REFUSED = """
import re, pytest, torch
from atrous.core.spec import Epilogue

SLOPE = Epilogue(slope_kind="tensor", slope=torch.ones(1, device="cpu"))

@pytest.mark.parametrize("mistake, message", [
    (lambda x: x + torch.ones(3, device="cpu"), "two devices"),
    (lambda x: torch.ops.atrous._epilogue(x, *SLOPE), "two devices"),
    (lambda x: torch.randn(3, generator=torch.Generator().manual_seed(0)), "generator of cuda"),
    (lambda x: x.numpy(), "can't convert cuda:0"),
])
def test_refused(mistake, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        mistake(torch.randn(1, 3))

def test_accepted(generator):
    x, w = torch.randn(2, 3, 5, 5, generator=generator), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = torch.conv2d(x, w)
    y.sum().backward()
    assert y.is_cuda and w.grad.device == torch.device("cuda", 0) and not y.cpu().is_cuda
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        with torch.autocast(device, torch.bfloat16):
            assert torch.conv2d(x, w).dtype == dtype
    assert torch.nn.Conv2d(3, 4, 3, device="cpu").to("cuda")(x).is_cuda
"""


def run(*arguments: str, folder: Path) -> str:
    """Runs tests on the fake device, which must all pass; returns the output of pytest."""
    paths = os.pathsep.join([str(TESTS), str(TESTS / "support"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "fake_cuda", "--device", "cuda", "-n", "0"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *arguments], env={**os.environ, "PYTHONPATH": paths}, cwd=folder,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.gate
def test_the_fake_device_raises_the_errors_of_a_gpu(tmp_path):
    (tmp_path / "test_fake.py").write_text(REFUSED)
    assert re.search(r"\b5 passed", run("-p", "conftest", str(tmp_path), folder=tmp_path))


@pytest.mark.gate
def test_the_cases_of_types_and_devices():
    assert re.search(
        r"\b\d\d+ passed", run("tests/api/test_cases_types.py", "-k", f"not ({SKIPPED})", folder=TESTS.parent)
    )


@pytest.mark.gate
@pytest.mark.parametrize("files", ["test_cases_*.py", "test_native*.py", "test_ops.py"])
def test_every_case(files):
    paths = sorted(str(path) for path in TESTS.rglob(files))
    assert re.search(r"\b\d+ passed", run(*paths, "-m", "not gate", "-k", f"not ({SKIPPED})", folder=TESTS.parent))
