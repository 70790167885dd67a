"""Tests of the fuzzer: a small run, its output and report, and that it finds planted faults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_host
import fuzz_conv
import pytest
import triton_cases as cases

from atrous.backends import library

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(cases.INTERPRETING, reason="it starts interpreter processes itself")


def fuzz(*options, interpret: bool, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the fuzzer in its own process; path: a folder whose packages come first."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, fuzz_conv.__file__, *map(str, options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_drawn(seed, capsys):
    """Sixty cases of each backend that runs on a CPU."""
    pytest.importorskip("triton")
    run = fuzz("--seed", seed, "--count", 240, interpret=True)
    with capsys.disabled():
        print(f" [fuzz: {run.stdout.strip().rpartition(chr(10))[2]}]", end=" ")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "triton 60" in run.stdout


def test_a_case_does_not_depend_on_what_ran_before():
    drawn = [fuzz_conv.draw_case(3, number, "native", "cpu") for number in range(20)]
    assert fuzz_conv.draw_case(3, 19, "native", "cpu") == drawn[19] and len(set(drawn)) == 20
    assert fuzz_conv.draw_case(4, 19, "native", "cpu") != drawn[19]


def test_a_failure_is_reported_and_reproduced(tmp_path, monkeypatch, capsys):
    """With the residual on the wrong side, each failure has a command, a simpler case and an entry in the file."""
    right = library.epilogue

    def wrong(z, arguments):
        return right(z, arguments._replace(residual_after_act=not arguments.residual_after_act))

    monkeypatch.setattr(library, "epilogue", wrong)
    file = tmp_path / "fuzz.json"
    assert fuzz_conv.main(["--backend", "library", "--count", "60", "--failures", "1", "--json", str(file)]) == 1
    printed, written = capsys.readouterr().out, json.loads(file.read_text())
    (failed,) = written["failures"]
    assert f"FAILED {failed['reproduce']}\n    OverBudget: y: error" in printed and "Case(form=" in printed
    assert failed["case"]["norm"] == "none" and failed["case"]["batch"] == 1 and not list(tmp_path.glob("*.partial"))
    assert sum(written["drawn"]["form"].values()) == written["done"]["library"] == failed["number"] + 1
    again = failed["reproduce"].split()[2:] + ["--no-shrink"]
    assert fuzz_conv.main(again) == 1
    monkeypatch.undo()
    assert fuzz_conv.main(again) == 0


def test_time_ends_a_run_without_a_count(capsys):
    assert fuzz_conv.main(["--backend", "library", "--seconds", "0.01"]) == 0
    assert capsys.readouterr().out.endswith("0 failed\n")


@pytest.mark.skipif(fuzz_conv.torch.cuda.is_available(), reason="there is a GPU")
def test_an_unavailable_device_or_backend_is_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        fuzz_conv.main(["--device", "cuda"])
    assert exit.value.code == 2 and "--device cuda: expected a CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        fuzz_conv.main(["--backend", "triton"])
    assert exit.value.code == 2 and "triton: no CUDA device" in capsys.readouterr().out


# Fault: its backend, its file, the right text, the wrong text.
FAULTS = {
    "dilation of the other axis": ("triton", "triton_kernels/conv/main_loop.py",
        "tap % L.kernel[1] * L.dilation[1]\n    inside", "tap % L.kernel[1] * L.dilation[0]\n    inside"),
    "residual on the wrong side": ("triton", "pyops/core/spec.py",
        '"after" if self.residual_after_act else "before"', '"before" if self.residual_after_act else "after"'),
    "slope of another channel": ("triton", "triton_kernels/vectors.py",
        "channel * slope_stride, mask", "channel // 2 * slope_stride, mask"),
    "no mask at odd channels": ("triton", "triton_kernels/conv/main_loop.py",
        "    valid = channel < L.in_channels\n", "    valid = channel < L.in_channels + 1\n"),
    "no eps": ("triton", "triton_kernels/epilogue.py", "square_root(var + eps)", "square_root(var)"),
    "tiles left unwritten": ("triton", "triton_kernels/conv/forward.py",
        "        tile += pixel_programs", "        tile += pixel_tiles"),
    "a split left out": ("triton", "triton_kernels/conv/forward.py",
        "tl.range(1, splits, ", "tl.range(1, splits - 1, "),
    "statistics of pixels outside the output": ("triton", "triton_kernels/conv/statistics.py",
        "merge(mask.to(tl.float32)", "merge(exists[:, None].to(tl.float32) + 0.0 * mask.to(tl.float32)"),
    "a gradient without the batch's mean": ("library", "pyops/autograd/function.py",
        "run(grad, z, config.batch_stats, *needed", "run(grad, z, False, *needed"),
    "the gradients of the residuals exchanged": ("library", "pyops/autograd/function.py",
        'grad if ctx.residual_place == "after" else du', 'du if ctx.residual_place == "after" else grad'),
    "a biased running variance": ("library", "pyops/core/call_args.py", "var * (count / (count - 1))", "var * 1.0"),
    "padding on the wrong side": ("library", "pyops/core/checks.py",
        "before = (0, total[1] % 2, 0, total[0] % 2)", "before = (total[1] % 2, 0, total[0] % 2, 0)"),
}  # fmt: skip


@pytest.mark.gate
@pytest.mark.drawn(3)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, tmp_path):
    """In a copy of the package, within five times as many cases per backend as test_drawn has."""
    backend, file, right, wrong = FAULTS[fault]
    package = tmp_path / "atrous"
    shutil.copytree(ROOT / "pyops", package)
    shutil.copytree(ROOT / "triton_kernels", package / "triton_kernels")
    source = package / file.removeprefix("pyops/")
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, wrong))
    options = ("--backend", backend, "--count", 300, "--failures", 1, "--no-shrink")
    run = fuzz(*options, interpret=backend == "triton", path=tmp_path)
    assert run.returncode == 1 and "1 failed" in run.stdout, run.stdout + run.stderr


# Faults in csrc/cuda: the unit, the right text, the wrong text.
EMULATED_FAULTS = {
    "a split left out": ("conv/split_k.cu", "split < sums.splits", "split + 1 < sums.splits"),
    "pixels left unwritten": ("conv/split_k.cu", "pixel < sums.pixels; pixel", "pixel + 1 < sums.pixels; pixel"),
    "residual left out": ("epilogue.cu", "SLOPE, RESIDUAL, DROPOUT>(widen", "SLOPE, Residual::none, DROPOUT>(widen"),
}  # fmt: skip


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    return cuda_host.built_once(tmp_path_factory)


@pytest.mark.gate
def test_drawn_over_the_emulation(seed, emulated):
    run = fuzz("--backend", "emulation", "--library", emulated, "--seed", seed, "--count", 30, interpret=False)
    assert run.returncode == 0 and "emulation 30" in run.stdout, run.stdout + run.stderr


@pytest.mark.gate
@pytest.mark.parametrize("fault", EMULATED_FAULTS)
def test_a_planted_fault_of_cuda_is_found(fault, emulated, tmp_path):
    unit, right, wrong = EMULATED_FAULTS[fault]
    faulty = cuda_host.planted(emulated, tmp_path, None, unit, unit, right, wrong)
    options = ("--backend", "emulation", "--library", faulty, "--count", 300, "--failures", 1, "--no-shrink")
    run = fuzz(*options, interpret=False)
    assert run.returncode == 1 and "1 failed" in run.stdout, run.stdout + run.stderr
