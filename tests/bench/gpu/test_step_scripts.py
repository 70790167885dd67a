"""Tests of the small scripts that only .ci/gpu runs, with a fake GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import ceilings, tuned

ROOT = Path(__file__).parents[3]


@pytest.fixture
def gpu(monkeypatch):
    known = {"is_available": lambda: True, "current_device": lambda: 0, "get_device_name": lambda device: "NVIDIA H100"}
    for name, answer in known.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(tuned.device_id, "device_name", lambda device: "NVIDIA H100")


def test_the_table_that_tune_wrote_is_copied(gpu, tuning_folder, tmp_path, capsys):
    results = tmp_path / "results"
    results.mkdir()
    assert tuned.main(str(results)) == 1 and "got none" in capsys.readouterr().err
    tuning_folder.mkdir(parents=True)
    name = f"nvidia-h100-torch-{torch.__version__.replace('+', '-')}.json"
    (tuning_folder / name).write_text("{}")
    (tuning_folder / "another.json").write_text("{}")
    assert tuned.main(str(results)) == 0 and [path.name for path in results.iterdir()] == [name]


def test_the_ceilings_are_those_of_every_table(gpu, tmp_path, monkeypatch, capsys):
    measured = {"matmul_tflops": 798.4, "copy_gb_s": 3000.0}
    monkeypatch.setattr(ceilings, "ceilings", lambda device: measured)
    assert ceilings.main([str(tmp_path)]) == 0 and "matmul 798 TFLOP/s, copy 3000 GB/s" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["ceilings"] == measured


@pytest.mark.parametrize("arguments", [[], ["paint"]])
def test_a_tool_that_sanitize_does_not_know_is_one_sentence(arguments):
    command = [sys.executable, "-m", "bench.gpu.sanitize", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and "expected memcheck, racecheck" in done.stderr
