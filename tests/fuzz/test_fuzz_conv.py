"""Tests of the fuzzer: a small run, its output and report, and that it finds planted faults."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_host
import fuzz_cases
import fuzz_conv
import fuzz_draws
import fuzz_report
import hypothesis
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


# Operators that each kind has to call: those behind conv_bn_act and, as a frozen model runs them, Winograd's.
CALLED = {
    "operators": (
        "_conv_epilogue", "_epilogue", "_epilogue_backward", "_epilogue_reduce", "_epilogue_gradients", "_statistics",
        "_winograd_weight", "_winograd_epilogue", "_winograd_weight_gradient",
    ),
    "models": ("_epilogue", "_epilogue_gradients", "_statistics_epilogue", "_winograd_epilogue"),
}  # fmt: skip
# 500 cases, operator calls and models, on so many backends: Triton's interpreter takes no fake tensors, as models do.
DRAWN = {"operators": (460, 0, 4), "models": (0, 40, 3)}


@pytest.mark.parametrize("kind", DRAWN)
def test_drawn(kind, seed, tmp_path, capsys):
    pytest.importorskip("triton")
    (calls, models, backends), file = DRAWN[kind], tmp_path / "fuzz.json"
    run = fuzz("--seed", seed, "--count", calls, "--models", models, "--json", file, interpret=True)
    with capsys.disabled():
        print(f" [fuzz: {run.stdout.strip().rpartition(chr(10))[2]}]", end=" ")
    assert run.returncode == 0, run.stdout + run.stderr
    written = json.loads(file.read_text())
    assert written["cases"] == calls + models and len(written["counts"]["backend"]) == backends
    assert all(count >= 4 for count in written["counts"]["form"].values())
    assert not {f"atrous::{name}" for name in CALLED[kind]} - written["operators"].keys()


@pytest.mark.parametrize("backend", ["library", "native", "triton", "emulation"])
def test_every_draw_is_legal(backend, seed):
    """Torch takes it, some output reads more than padding along each axis, and its work is bounded."""
    for case in draws(fuzz_draws.operator_cases(backend), 150, seed):
        output, most = case.output(), fuzz_draws.MOST["winograd" if backend == "native" else "cpu"]
        work = math.prod(output) * math.prod(case.shapes[1][1:])
        assert work <= most[0] and math.prod(output) <= most[1]
        axes = zip(case.size, output[2:], case.kernel, case.stride, pads_of(case), case.dilation)
        assert min(output[1:]) > 0 and all(fuzz_cases.meets_input(*axis) for axis in axes)
        assert case.norm != "batch" or math.prod(output) != case.out_channels
        assert fuzz_report.from_text(fuzz_report.to_text(case)) == case


def draws(strategy, count: int, seed: int) -> list:
    """So many cases; hypothesis fails if it rejects most of what it draws."""
    drawn = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, database=None, phases=[hypothesis.Phase.generate], deadline=None)
    @hypothesis.given(strategy)
    def draw(case):
        drawn.append(case)

    draw()
    return drawn


def pads_of(case) -> tuple[int, int]:
    if isinstance(case.padding, str):
        return tuple(d * (k - 1) // 2 * (case.padding == "same") for d, k in zip(case.dilation, case.kernel))
    return case.padding if isinstance(case.padding, tuple) else (case.padding,) * 2


def test_the_same_seed_gives_the_same_file(tmp_path):
    """Counts, operators and cases depend on the seed alone."""
    texts = []
    for seed in (3, 3, 4):
        file = tmp_path / "fuzz.json"
        assert fuzz_conv.main(["--backend", "library", "--count", "20", "--seed", str(seed), "--json", str(file)]) == 0
        texts.append(file.read_text())
    assert texts[0] == texts[1] and json.loads(texts[1])["counts"] != json.loads(texts[2])["counts"]


def test_a_failure_is_reported_and_reproduced(tmp_path, monkeypatch, capsys):
    """With the residual on the wrong side, each failure has a command, a simple case and an entry in the file."""
    right = library.epilogue

    def wrong(z, arguments):
        return right(z, arguments._replace(residual_after_act=not arguments.residual_after_act))

    monkeypatch.setattr(library, "epilogue", wrong)
    file = tmp_path / "fuzz.json"
    assert fuzz_conv.main(["--backend", "library", "--count", "100", "--failures", "1", "--json", str(file)]) == 1
    printed, written = capsys.readouterr().out, json.loads(file.read_text())
    (failed,) = written["failures"]
    assert f"FAILED {failed['reproduce']}\n    OverBudget: y: error" in printed and "Case(backend=" in printed
    simple = {"norm": "none", "batch": 1, "memory": "aligned", "dropout": 0.0, "bias": False, "kernel": [1, 1]}
    assert failed["case"].items() >= simple.items() and not list(tmp_path.glob("*.partial"))
    assert sum(written["counts"]["form"].values()) == written["cases"] <= 100
    again = shlex.split(failed["reproduce"])[2:]
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
    "off by one in the stride of a view": ("library", "pyops/core/layout.py",
        "least = x.stride(axis) * x.shape[axis]", "least = x.stride(axis) * (x.shape[axis] + 1)"),
    "padding on the wrong side": ("library", "pyops/core/checks.py",
        "before = (0, total[1] % 2, 0, total[0] % 2)", "before = (total[1] % 2, 0, total[0] % 2, 0)"),
}  # fmt: skip


# Fault in fused models: its file, the right text, the wrong text.
MODEL_FAULTS = {
    "no eps in a frozen fold": ("pyops/nn.py", "torch.rsqrt(var.double() + eps)", "torch.rsqrt(var.double())"),
    "a residual of the other side": ("pyops/fusion/sites/call.py",
        't.get("residual"), self.after,', 't.get("residual"), not self.after,'),
    "a biased running variance": ("pyops/fusion/sites/call.py", "var * (count / (count - 1))", "var * 1.0"),
}  # fmt: skip


def fuzz_with_fault(tmp_path, file: str, right: str, wrong: str, *options, **ways) -> None:
    """Asserts that the fuzzer finds a fault in a copy of the package."""
    package = tmp_path / "atrous"
    shutil.copytree(ROOT / "pyops", package)
    shutil.copytree(ROOT / "triton_kernels", package / "triton_kernels")
    source = package / file.removeprefix("pyops/")
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, wrong))
    run = fuzz(*options, "--failures", 1, "--no-shrink", path=tmp_path, **ways)
    assert run.returncode == 1 and "1 failed" in run.stdout, run.stdout + run.stderr


@pytest.mark.gate
@pytest.mark.drawn(3)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, tmp_path):
    """Within three times as many cases of its backend as test_drawn has."""
    backend, *change = FAULTS[fault]
    options = "--backend", backend, "--count", 300
    fuzz_with_fault(tmp_path, *change, *options, interpret=backend == "triton")


@pytest.mark.gate
@pytest.mark.drawn(3)
@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_planted_fault_of_fused_models_is_found(fault, tmp_path):
    """Within four times as many models as test_drawn has: few of them are frozen, in fp32 or fp64, with a BatchNorm."""
    fuzz_with_fault(tmp_path, *MODEL_FAULTS[fault], "--count", 0, "--models", 4 * DRAWN["models"][1], interpret=False)


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
