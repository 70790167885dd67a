"""PyTorch's op_db and module_db through every entry point: a drawn part; `make opinfo-all` runs every sample."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import opinfo_counts
import pytest
import triton_cases as cases

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "tests" / "opinfo" / "opinfo.py"
pytestmark = pytest.mark.skipif(cases.INTERPRETING, reason="it starts interpreter processes itself")


def opinfo(*options, interpret: bool = False, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command in its own process; path: a folder whose packages come first. Skips if torch lacks samples."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, str(COMMAND), *map(str, options)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode == 3:
        pytest.skip(run.stdout)
    return run


def passed(run: subprocess.CompletedProcess[str], least: int, capsys) -> None:
    """Asserts that no case failed and that at least so many gave torch's values."""
    last = run.stdout.strip().rpartition("\n")[2]
    with capsys.disabled():
        print(f" [opinfo: {last}]", end=" ")
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(last.split(" the same")[0].split()[-1]) >= least


def test_drawn(seed, capsys):
    passed(opinfo("--seed", seed, "--count", 2), 200, capsys)


@pytest.mark.gate
def test_drawn_under_the_interpreter(seed, capsys):
    pytest.importorskip("triton")
    passed(opinfo("--seed", seed, "--count", 3, "--backend", "triton", interpret=True), 150, capsys)


# Fault: the operator or module that shows it, its file, the right text, the wrong text.
FAULTS = {
    "a biased running variance": ("nn.functional.batch_norm", "core/call_args.py",
        "var * (count / (count - 1))", "var * 1.0"),
    "padding on the wrong side": ("nn.functional.conv2d", "core/checks.py",
        "before = (0, total[1] % 2, 0, total[0] % 2)", "before = (total[1] % 2, 0, total[0] % 2, 0)"),
    "a residual that is not added": ("add", "functional.py",
        "PostOpArgs(slope, other, False, ", "PostOpArgs(slope, 0 * other, False, "),
    "the slope's gradient of the other channel": ("nn.functional.prelu", "autograd/function.py",
        "dict(zip(VECTORS, vectors))", "dict(zip(VECTORS, (v if v is None else v.flip(0) for v in vectors)))"),
    "an unbatched convolution": ("nn.Conv2d", "core/checks.py",
        "raise (ValueError if value.dim() == 3 else error)(", "raise error("),
    "dropout that is not scaled": ("nn.functional.dropout", "functional.py",
        "dropout=dropout if training else 0.0", "dropout=dropout / 2 if training else 0.0"),
}  # fmt: skip


@pytest.mark.gate
@pytest.mark.drawn(3)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, seed, tmp_path):
    """In a copy of the package, among twenty cases of each entry point, backend and way."""
    name, file, right, wrong = FAULTS[fault]
    package = tmp_path / "atrous"
    shutil.copytree(ROOT / "pyops", package)
    shutil.copytree(ROOT / "triton_kernels", package / "triton_kernels")
    source = package / file
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, wrong))
    run = opinfo("--seed", seed, "--count", 20, "--name", name, path=tmp_path)
    assert run.returncode == 1 and "FAILED" in run.stdout, run.stdout + run.stderr
    again = run.stdout.partition("--only '")[2].partition("'")[0]
    assert opinfo("--only", again, path=tmp_path).returncode == 1 and opinfo("--only", again).returncode == 0


def test_every_outcome_that_is_counted_is_a_kind_of_its_own():
    assert all(opinfo_counts.kind(name) == name for counts in opinfo_counts.COUNTS.values() for name in counts)
