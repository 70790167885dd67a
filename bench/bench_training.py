"""Benchmark a training step of ResNet34, and its memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.subjects import training

ROOT = Path(__file__).parents[1]
NETWORKS = {"224 b8": ("--batch", "8"), "512 os8 b1": ("--batch", "1", "--size", "512", "--output-stride", "8")}


@pytest.mark.parametrize("act, dtype", [("prelu", torch.float32), ("relu", torch.bfloat16)], ids=["prelu", "relu-bf16"])
def test_step(act, dtype, full, compare):
    with torch.enable_grad():
        training.check_gradients(act)
        name = "PReLU b8" if act == "prelu" else "ReLU b8"
        compare(
            "training step (bf16: autocast)",
            name,
            [training.resnet34(8, act=act, dtype=dtype, full=full)],
            seconds=20.0,
        )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("provider", training.VARIANTS)
def test_memory(provider, network, full, add_row, request):
    if request.config.getoption("benchmark_disable"):
        pytest.skip("there is no result to check")
    quick = ("eager NCHW", "torch.compile", "atrous")[:: 1 if network == "224 b8" else 2]
    if provider not in quick and not full:
        pytest.skip("takes long: make bench-full")
    command = [sys.executable, "-m", "bench.commands.memory", provider, *NETWORKS[network]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    row = {"part": "memory", "case": network, "provider": provider, "dtype": "float32"}
    add_row(row | json.loads(done.stdout.splitlines()[-1]))
