"""The CPU benchmarks: rounds, spreads, what is checked and what is reported, the summary, pytest-benchmark's JSON."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atrous.tools import timing
from bench import measure, rounds, summary
from bench.subjects import layers, networks, peers, subject, training
from bench.tables.layers import FusedLayer

ROOT = Path(__file__).parents[2]


def clock(log):
    """A clock of calls that are numbers: their milliseconds, twice as many in a slow phase of the machine."""

    def time(call, repeats):
        log.append((call, repeats))
        return call * (2 if 30 < len(log) < 60 else 1)

    return time


def test_each_call_has_one_turn_in_each_round():
    log = []
    times = rounds.interleaved({"a": 10.0, "b": 5.0, "c": 1.0}, clock(log), seconds=0.35)
    assert {len(values) for values in times.values()} == {10}  # 350 ms / (10 + 5 + 5 blocks of 4 calls of 1)
    turns = [call for call, _ in log[3:]]
    assert all(sorted(turns[i : i + 7]) == [1.0] * 5 + [5.0, 10.0] for i in range(0, len(turns), 7))
    assert len({tuple(turns[i : i + 7]) for i in range(0, len(turns), 7)}) > 1
    assert {repeats for call, repeats in log[3:] if call == 1.0} == {4}
    assert timing.ratio(times["a"], times["b"]).median == 2.0


def test_an_exponent_is_fitted():
    assert rounds.exponent([1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]) == pytest.approx(1.0)
    assert rounds.exponent([1, 10, 100], [5.0, 500.0, 50000.0]) == pytest.approx(2.0)


def some(providers, **options):
    exact = torch.ones(8, dtype=torch.float64)
    return subject.Subject(torch.float32, providers, lambda: exact.float() * (1 + 1e-6), exact, **options)


def refuse():
    raise subject.Unavailable("not installed")


def broken():
    raise RuntimeError("no such layer\nand more")


def wrong():
    return lambda: torch.full((8,), 1.5)


def test_an_error_of_a_peer_is_reported_and_one_of_ours_raised():
    case = measure.Case("part", "name")
    right = {"eager": lambda: lambda: torch.ones(8), "peer": wrong, "absent": refuse, "broken": broken}
    case.prepare([some(right)], lambda name: True)
    assert case.errors["peer", "float32"] > 1e5 and set(case.calls) == {("eager", "float32"), ("peer", "float32")}
    reasons = {"absent": "not installed", "broken": "RuntimeError: no such layer"}
    assert {name: reason for (name, _), reason in case.reasons.items()} == reasons
    with pytest.raises(AssertionError, match="error 0.5 against fp64"):
        measure.Case("part", "name").prepare([some({**right, "atrous": wrong})], lambda name: True)
    with pytest.raises(RuntimeError, match="no such layer"):
        measure.Case("part", "name").prepare([some({"atrous": broken})], lambda name: True)


def test_the_baseline_is_always_there():
    case = measure.Case("part", "name")
    eager = {name: lambda: lambda: torch.ones(8) for name in ("eager", "eager NHWC", "peer")}
    case.prepare([some(eager)], lambda name: name.startswith("peer"))
    assert [name for name, _ in case.calls] == ["eager", "peer"]
    times = {("eager", "float32"): [2.0] * 7, ("peer", "float32"): [1.0] * 6 + [1.5]}
    first, second = case.rows(times, batch=1)
    assert (first["speedup"], second["speedup"], second["counted"], second["batch"]) == (1.0, 2.0, True, 1)


def test_absent_peers_say_so(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    x = torch.zeros(1)
    for call in (
        lambda: peers.openvino(None, x, x.dtype), lambda: peers.onnxruntime(None, x), lambda: peers.gpu_only("TensorRT")
    ):  # fmt: skip
        with pytest.raises(subject.Unavailable, match="not installed"):
            call()


@pytest.mark.parametrize("module", ["openvino", "onnxruntime"])
def test_a_peer_that_is_installed_is_right(module):
    pytest.importorskip(module)
    model, x = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.PReLU(4)).eval(), torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        call = peers.openvino(model, x, x.dtype) if module == "openvino" else peers.onnxruntime(model, x)
        torch.testing.assert_close(call(), model(x), rtol=1e-4, atol=1e-5)


def test_a_layer_is_checked():
    with torch.no_grad():
        part = layers.layer(FusedLayer("a", 1, 8, 16, 3, 2, 9, residual=True), 2, torch.float32)
        for name, prepare in part.providers.items():
            y = prepare()()
            error = part.error(name, y)
            assert (error is None) if name in part.unchecked else error < 2


@pytest.mark.gate  # it traces whole networks
def test_networks_and_training_steps():
    with torch.no_grad():
        for part in networks.resnet34(1, 64):
            assert all(part.error(n, p()()) < 2 for n, p in part.providers.items() if n.startswith("atrous"))
    training.check_gradients("prelu")
    part = training.resnet34(2, 64, "relu", torch.bfloat16)
    for name in ("eager NCHW", "atrous"):
        assert part.providers[name]()() is None


def row(provider, case, speedup, spread, **more):
    timed = {"speedup": speedup, "spread": spread, "counted": spread <= 0.05, "median_ms": 10 / speedup, "error": 1.25}
    return {"part": "ResNet34", "case": case, "provider": provider, "dtype": "float32", **timed, **more}


def results():
    timed = [row(name, f"case {i}", s, 0.01 * i) for i in range(9) for name, s in (("eager", 1.0), ("atrous", 2.0))]
    absent = {
        "part": "ResNet34",
        "case": "case 0",
        "provider": "OpenVINO",
        "dtype": "bfloat16",
        "reason": "not installed",
    }
    swept = [
        row("eager", f"b{x}", 1.0, 0.0, axis="batch", x=x) | {"part": "sweep", "median_ms": 3.0 * x} for x in (1, 2, 4)
    ]
    memory = {
        "part": "memory",
        "case": "224",
        "provider": "atrous",
        "dtype": "float32",
        "saved_mb": 20.3,
        "allocated_mb": 44.5,
        "peak_mb": 99.6,
    }
    layer = {"part": "layers", "batch": 1, "count": 3, "macs": 1e9, "product_macs": 2e9}
    two = [row(name, "layer1", 1.0, 0.0, **layer) for name in ("atrous frozen", layers.ALONE)]
    return [*timed, absent, *swept, memory, *two]


def test_the_summary_has_100_columns_and_ratios_first():
    text = summary.text(results(), {"gmac_s_float32": 200.0, "copy_gb_s": 30.0})
    assert max(map(len, text.splitlines())) <= 100
    assert text.index("2.00 ±4") < text.index("Median milliseconds")
    assert "(2.00 ±6)" in text and "OpenVINO bf16: not installed" in text and "time ~ batch^1.00" in text
    assert "20 / 44 / 100" in text and "10.00 10.00    50%" in text and "30.0 30.0" in text
    assert summary.mean([row("a", "b", 2.0, 0.01), row("a", "c", 8.0, 0.01), row("a", "d", 99.0, 0.2)]) == 4.0


def test_each_provider_is_an_entry_that_pytest_benchmark_compares(tmp_path):
    """One small case through pytest: its JSON, the results file, and `pytest-benchmark compare`."""
    pytest.importorskip("pytest_benchmark")
    path, folder = tmp_path / "bench.json", tmp_path / "results"
    command = [sys.executable, "-m", "pytest", "bench", "-q", "--benchmark-quiet", "-k", "add_act and layer4"]
    options = ["--providers", "atrous", "--benchmark-json", str(path), "--results", str(folder)]
    # pytest-benchmark measures nothing in a worker of pytest-xdist, and this process may be one
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*command, *options], cwd=ROOT, env=alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "not used at all" not in done.stdout, done.stdout
    entries = json.loads(path.read_text())["benchmarks"]
    names = [entry["name"] for entry in entries]
    assert names[:2] == ["test_add_act[layer4][eager float32]", "test_add_act[layer4][atrous library float32]"]
    assert len({entry["stats"]["rounds"] for entry in entries}) == 1
    (file,) = folder.glob("cpu-*.json")
    result = json.loads(file.read_text())
    timed = [row for row in result["rows"] if "median_ms" in row]
    assert [row["median_ms"] for row in timed] == pytest.approx([e["stats"]["median"] * 1e3 for e in entries])
    assert {"device", "capability", "threads", "hardware", "commit", "date", "versions", "peers"} <= result.keys()
    again = shutil.copy(path, tmp_path / "again.json")
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(path), str(again)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "atrous library" in done.stdout, done.stderr
