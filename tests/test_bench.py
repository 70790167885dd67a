"""The benchmarks' arithmetic and shape, on sizes that a CPU measures in no time; .ci/gpu where there is no card."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("cudnn_table", ROOT / "bench" / "cudnn_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cudnn_table"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_layers_are_those_of_resnet34(table):
    layers = table.layers()
    assert len(layers) == 11 and sum(layer.count for layer in layers) == 36
    macs = sum(layer.count * layer.flop(1) for layer in layers) / 2
    assert macs / 1e9 == pytest.approx(3.663, abs=5e-4)
    assert layers[0] == table.Layer("conv1", 1, 3, 64, 7, 2, 224)
    assert layers[1] == table.Layer("layer1.0.conv1", 6, 64, 64, 3, 1, 56)


def test_dilation_keeps_sizes_and_leaves_pointwise_alone(table):
    layers = table.dilated(table.layers(64))
    assert len(layers) == 8 * 3 + 3
    for layer in layers:
        x, w = torch.empty(1, layer.in_channels, *(layer.size,) * 2, device="meta"), None
        w = torch.empty(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel, device="meta")
        assert torch.conv2d(x, w, None, *layer.geometry).shape[2:] == (layer.out_size, layer.out_size), layer


@pytest.mark.parametrize("direction", ["forward", "dgrad", "wgrad"])
def test_a_convolution_is_measured_in_each_direction(table, direction):
    layer = table.Layer("small", 2, 4, 6, 3, 2, 9, dilation=2)
    row = table.convolution(layer, direction, 2, torch.float32, DEVICE)
    assert row["tflops"] == pytest.approx(2 * 2 * 6 * 5 * 5 * 4 * 9 / row["ms"] / 1e9)
    told = [row[key] for key in ("layer", "dilation", "pass", "batch", "dtype")]
    assert told == ["small", 2, direction, 2, "float32"]


@pytest.mark.parametrize("training", [False, True])
def test_a_network_is_measured(table, training, monkeypatch):
    monkeypatch.setattr(table, "median", lambda call, device, seconds: [call(), 20.0][1])
    row = table.network("eager_channels_last", training, 2, DEVICE, 32, torch.float32)
    assert row["images_s"] == pytest.approx(100.0) and row["mode"] == ("training" if training else "inference")


def test_the_whole_table(table, monkeypatch):
    monkeypatch.setattr(table, "median", lambda call, device, seconds=0.3: [call(), 1.0][1])
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    saved, small = [], {"size": 64, "batch": 1, "batches": (1,), "dtypes": (torch.float32,), "side": 16, "mebi": 1}
    result = table.table(DEVICE, lambda result: saved.append(json.dumps(result)), **small)
    assert {"device", "driver", "commit", "date", "versions", "ceilings", "convolutions", "models"} <= result.keys()
    assert json.loads(saved[-1]) == result and len(saved) > len(result["convolutions"])
    assert len(result["convolutions"]) == 27 * 3 and len(result["models"]) == 3 * 2 and not result["not_run"]
    assert "conv1" in table.show(result)


def test_what_fails_or_comes_too_late_is_listed(table):
    def job(name):
        if name == "bad":
            raise RuntimeError("out of memory\nlong explanation")
        return name

    rows, not_run = [], []
    table.fill([(job, "good"), (job, "bad")], rows, not_run, 60.0, lambda: None)
    table.fill([(job, "late")], rows, not_run, -1.0, lambda: None)
    assert rows == ["good"]
    assert [row["arguments"] for row in not_run] == [["bad"], ["late"]]
    assert not_run[0]["reason"] == "RuntimeError: out of memory" and "over" in not_run[1]["reason"]


def test_copies_rotate_through_more_than_the_cache(table):
    made = []
    sets = table.rotated(lambda: made.append(1) or (torch.ones(4, device=DEVICE),), DEVICE)
    next(sets)
    assert made
    if DEVICE.type == "cuda":
        assert 16 * len(made) >= 2 * torch.cuda.get_device_properties(DEVICE).L2_cache_size


def gpu(*arguments):
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = [str(ROOT / ".ci" / "gpu"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [(["bench"], 3, "no NVIDIA card"), (["sanitize"], 2, "not there yet"), (["tune"], 2, "not there yet"),
     (["paint"], 2, "usage"), ([], 2, "usage")],
)  # fmt: skip
def test_ci_gpu_says_in_one_line_why_it_does_not_run(arguments, status, told):
    done = gpu(*arguments)
    assert done.returncode == status and told in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_the_benchmarks_are_collected_and_correct():
    """One case of each op with every row, measured not at all."""
    command = [sys.executable, "-m", "pytest", "bench", "-q", "-k", "add_act and layer4 and not compile"]
    pytest.importorskip("pytest_benchmark")
    done = subprocess.run([*command, "--benchmark-disable"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_committed_results_are_whole():
    """A file in bench/results says where it comes from."""
    for path in (ROOT / "bench" / "results").glob("*.json"):
        assert {"device", "date", "commit", "versions"} <= json.loads(path.read_text()).keys(), path.name


@pytest.mark.gpu
def test_a_small_table_on_the_card(table):
    assert torch.cuda.is_available()
    row = table.convolution(table.layers()[1], "forward", 8, torch.bfloat16, DEVICE)
    assert row["tflops"] > 1
