"""Two processes as torchrun starts them: one network in both, each on its own patches; the first one writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import vessel_images

from examples.vessels import checkpoint

ROOT = Path(__file__).parents[3]
TRAIN = """
import os, sys
sys.path.insert(0, os.getcwd())
import torch
from examples.vessels import cli, config, training
output, *arguments = sys.argv[1:]
torch.set_num_threads(1)
model = training.train(config.from_arguments(cli.parser().parse_args(arguments)))
torch.save(model.state_dict(), f"{output}/rank{os.environ['RANK']}.pt")
"""
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)


@pytest.mark.gate
def test_two_processes_have_the_same_weights(tmp_path):
    folder, run, script = vessel_images.draw(tmp_path / "images"), tmp_path / "run", tmp_path / "train.py"
    script.write_text(TRAIN)
    arguments = vessel_images.arguments("train", folder, run, epochs=2, dropout=0.5)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*launch, str(script), str(tmp_path), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("fused, 2 x cpu") == 1 and process.stdout.count("epoch 2/2: loss") == 1
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    statistics = {name for name in first if "running" in name}
    assert all(torch.equal(first[name], second[name]) for name in first.keys() - statistics)
    # BatchNorm's statistics are each process's own on a CPU: the patches differ.
    assert any(not torch.equal(first[name], second[name]) for name in statistics)
    saved = checkpoint.load(run).best
    assert all(torch.equal(saved[name], first[name]) for name in first)
