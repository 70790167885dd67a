"""A run that is killed in the middle of an epoch goes on with the numbers of an unbroken one, bit for bit on a CPU."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import torch
import vessel_images

from examples.vessels import checkpoint, cli

ROOT = Path(__file__).parents[3]
# Step 13 is in the middle of the third epoch.
KILLED = """
import os, signal, sys
from examples.vessels import cli, training
step = training.Run._step
def killed(self, x, y, number):
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, x, y, number)
training.Run._step = killed
cli.main(sys.argv[1:])
"""


def curve(run):
    """The history without the times."""
    history = json.loads((run / "history.json").read_text())
    lines = [{k: v for k, v in line.items() if "seconds" not in k} for line in history["epochs"]]
    return lines, history["losses"]


def weights(run):
    saved = checkpoint.load(run)
    momenta = {f"momentum {key}": state["momentum_buffer"] for key, state in saved.optimizer["state"].items()}
    return {**saved.model, **momenta}


def test_a_killed_run_gives_the_curve_of_an_unbroken_one(tmp_path, capsys):
    folder = vessel_images.draw(tmp_path / "images")
    whole, broken = (
        vessel_images.arguments("train", folder, tmp_path / name, act="rrelu", dropout=0.5)
        for name in ("whole", "broken")
    )
    assert cli.main(whole) == 0
    process = subprocess.run([sys.executable, "-c", KILLED, *broken], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(curve(tmp_path / "broken")[0]) == 2
    capsys.readouterr()
    assert cli.main([*broken, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "from the checkpoint behind epoch 2" in printed and "epoch 3/4: loss" in printed
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    assert not list((tmp_path / "broken").glob(".*.new")) and not list((tmp_path / "broken").glob("*.part"))
    ours, expected = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)
    assert cli.main(broken) == 0  # nothing is left to train
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


def test_more_epochs_go_on_with_a_finished_run(tmp_path):
    folder = vessel_images.draw(tmp_path / "images")
    for name, epochs in (("whole", [3]), ("parts", [1, 3])):
        for number in epochs:
            assert cli.main(vessel_images.arguments("train", folder, tmp_path / name, "--plain", epochs=number)) == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
