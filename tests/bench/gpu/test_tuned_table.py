"""Tests that processes started after `python -m atrous tune` on a GPU use the tuning table that it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SHAPE = {"input": [2, 16, 9, 9], "out_channels": 32, "kernel": 3, "padding": 1, "residual": "before"}
# A fake GPU without graphs and events, sufficient for tune.
GPU = """
import sys, time, torch, fake_cuda
fake_cuda.install()
from atrous import tuning
from atrous.tools import cli, timing
from atrous.tools.tune import measure as tuner
def milliseconds(call, device, calls=1):
    begun = time.perf_counter()
    [call() for _ in range(calls)]
    return (time.perf_counter() - begun) * 1e3 / calls
timing.milliseconds, timing.ceilings = milliseconds, lambda device: {"matmul_tflops": 600.0, "copy_gb_s": 2800.0}
tuner.at_once, tuner.MAX_SECONDS = lambda runs, device: lambda: [run() for run in runs], 0.0
"""
TUNE = 'assert cli.main(["tune", sys.argv[1], "--device", "cuda", "--seconds", "60", "--commit", "abc"]) == 0'
LAYERS = """
import runpy
from bench.tables import fused_layers, layers
for dtype in (torch.bfloat16, torch.float16):
    for batch, dilation in ((2, 1), (1, 1), (2, 2)):
        case = fused_layers.case(layers.FusedLayer("a", 1, 16, 32, 3, 1, 9, dilation, residual=True), batch)
        arguments = fused_layers.testing.arguments(case, dtype, "cuda", torch.channels_last)
        print(fused_layers.chosen(arguments)["tuned"], end=" ")
print(tuning.ceilings(torch.device("cuda", 0)))
"""
COPY = """
import runpy
sys.argv = ["tuned.py", sys.argv[1]]
runpy.run_module("bench.gpu.tuned", run_name="__main__")
"""


@pytest.fixture
def run(tmp_path):
    """run(code, argument, ...) -> what a process with a fake GPU and a cache of its own prints."""

    def call(code: str, *arguments: object) -> str:
        paths = [str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", GPU + code, *map(str, arguments)], env=environment, cwd=ROOT, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


@pytest.mark.gate
def test_the_table_that_tune_wrote_decides_in_the_next_process(run, tmp_path):
    (tmp_path / "shapes.json").write_text(json.dumps([SHAPE]))
    assert "1 to measure, bfloat16, channels_last\nfake\n" in run(TUNE, tmp_path / "shapes.json")
    *tuned, ceilings = run(LAYERS).split(" ", 6)
    assert tuned == ["True", "False", "False", "False", "False", "False"]  # bf16, its batch, its dilation
    assert "600.0" in ceilings
    assert "False" == run("torch.backends.cudnn.version = lambda: 1\n" + LAYERS).split()[0]  # another cuDNN
    (copied,) = run(COPY, tmp_path).split()
    table = json.loads(Path(copied).read_text())
    assert Path(copied).parent == tmp_path and table["device"] == "fake" and len(table["entries"]) == 1
