"""Tests of the benchmark tables on sizes that a CPU measures quickly: layers, jobs, the results file, the report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atrous import testing
from bench import record as bench_record
from bench.gpu import steps
from bench.report import report as bench_report
from bench.tables import cudnn
from bench.tables import layers as bench_layers
from bench.tables import measures as bench_measures

ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def layers():
    return bench_layers


@pytest.fixture(scope="module")
def measures(layers):
    return bench_measures


@pytest.fixture(scope="module")
def table(measures):
    return cudnn


def test_the_layers_are_those_of_resnet34(layers):
    convs = layers.layers()
    assert len(convs) == 11 and sum(layer.count for layer in convs) == 36
    macs = sum(layer.count * layer.flop(1) for layer in convs) / 2
    assert macs / 1e9 == pytest.approx(3.663, abs=5e-4)
    assert convs[0] == layers.Layer("conv1", 1, 3, 64, 7, 2, 224)
    assert convs[1] == layers.Layer("layer1.0.conv1", 6, 64, 64, 3, 1, 56)


def test_dilation_keeps_sizes_and_leaves_pointwise_alone(layers):
    dilated = layers.dilated(layers.layers(64))
    assert len(dilated) == 8 * 3 + 3
    for layer in dilated:
        x = torch.empty(1, layer.in_channels, *(layer.size,) * 2, device="meta")
        w = torch.empty(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel, device="meta")
        assert torch.conv2d(x, w, None, *layer.geometry).shape[2:] == (layer.out_size, layer.out_size), layer


@pytest.mark.parametrize("direction", ["forward", "dgrad", "wgrad"])
def test_a_convolution_is_measured_in_each_direction(layers, measures, direction):
    layer = layers.Layer("small", 2, 4, 6, 3, 2, 9, dilation=2)
    row = measures.convolution(layer, direction, 2, torch.float32, DEVICE)
    assert row["tflops"] == pytest.approx(2 * 2 * 6 * 5 * 5 * 4 * 9 / row["ms"] / 1e9)
    values = [row[key] for key in ("layer", "dilation", "pass", "batch", "dtype")]
    assert values == ["small", 2, direction, 2, "float32"]


@pytest.mark.parametrize("training", [False, True])
def test_a_network_is_measured(measures, training, monkeypatch):
    monkeypatch.setattr(measures, "median", lambda call, device, seconds: [call(), 20.0][1])
    row = measures.network("eager_channels_last", training, 2, DEVICE, 32, torch.float32)
    assert row["images_s"] == pytest.approx(100.0) and row["mode"] == ("training" if training else "inference")


def test_the_whole_table(measures, table, monkeypatch):
    monkeypatch.setattr(measures, "median", lambda call, device, seconds=0.3: [call(), 1.0][1])
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    saved, small = [], {"size": 64, "batch": 1, "batches": (1,), "dtypes": (torch.float32,), "side": 16, "mebi": 1}
    result = bench_record.describe(DEVICE)
    table.table(DEVICE, result, lambda: saved.append(json.dumps(result)), **small)
    assert {"device", "driver", "commit", "date", "versions", "ceilings", "convolutions", "models"} <= result.keys()
    assert json.loads(saved[-1]) == result and len(saved) > len(result["convolutions"])
    assert len(result["convolutions"]) == 27 * 3 and len(result["models"]) == 3 * 2 and not result["not_run"]
    assert "conv1" in table.show(result)


def job(name):
    if name == "bad":
        raise RuntimeError("out of memory\nlong explanation")
    return name


def test_failed_and_late_jobs_are_listed(table):
    result, parts = {}, {"a": [(job, "good"), (job, "bad")], "b": [(job, "late")]}
    table.tables.fill(result, parts, {"a": 60.0, "b": -1.0}, lambda: None)
    assert result["a"] == ["good"] and result["b"] == []
    assert [row["arguments"] for row in result["not_run"]] == [["bad"], ["late"]]
    reasons = [row["reason"] for row in result["not_run"]]
    assert reasons[0] == "RuntimeError: out of memory" and "over" in reasons[1]


def test_a_run_that_is_cut_off_lists_what_it_lacks(table):
    def cut(*arguments):
        raise KeyboardInterrupt

    result, parts = {}, {"a": [(job, "one"), (cut, "two", torch.float32)], "b": [(job, "three")]}
    with pytest.raises(KeyboardInterrupt):
        table.tables.fill(result, parts, {"a": 60.0, "b": 60.0}, lambda: None)
    assert result["a"] == ["one"]
    assert [entry["arguments"] for entry in result["not_run"]] == [["two", "float32"], ["three"]]
    assert [entry["reason"] for entry in result["not_run"]] == ["begun and not finished", "not reached"]


def growing(names):
    def measure(*arguments):
        row = {"ms": {}}
        for name in names:
            yield row
            if name == "cut":
                raise KeyboardInterrupt
            row["ms"][name] = 1.0

    return measure


def test_a_row_is_saved_as_it_grows(table):
    saved, result = [], {}
    table.tables.fill(result, {"a": [(growing(["x", "y"]), 1)]}, {"a": 60.0}, lambda: saved.append(json.dumps(result)))
    assert [row["ms"] for row in json.loads(saved[1])["a"]] == [{"x": 1.0}] and json.loads(saved[1])["a"][0]["partial"]
    assert result == {"a": [{"ms": {"x": 1.0, "y": 1.0}}], "not_run": []}


def test_a_row_that_was_cut_off_is_kept_and_then_measured_again(table):
    result = {}
    with pytest.raises(KeyboardInterrupt):
        table.tables.fill(result, {"a": [(growing(["x", "cut"]), 1)]}, {"a": 60.0}, lambda: None)
    assert result["a"] == [{"ms": {"x": 1.0}, "partial": True}] and len(result["not_run"]) == 1
    table.tables.fill(result, {"a": [(growing(["x", "y"]), 1)]}, {"a": 60.0}, lambda: None)
    assert result == {"a": [{"ms": {"x": 1.0, "y": 1.0}}], "not_run": []}


def test_the_budget_is_asked_inside_a_job(table, monkeypatch):
    """Each variant takes 30 s of 50: the third does not start, and the first two are saved."""
    now = [0.0]
    monkeypatch.setattr(table.tables.time, "monotonic", lambda: now[0])

    def measure():
        row = {"ms": {}}
        for name in "xyz":
            yield row
            now[0] += 30.0
            row["ms"][name] = 30.0

    result = {}
    table.tables.fill(result, {"a": [(measure,)]}, {"a": 50.0}, lambda: None)
    assert result["a"] == [{"ms": {"x": 30.0, "y": 30.0}, "partial": True}]
    assert "before the row was complete" in result["not_run"][0]["reason"]


def test_a_row_gets_the_seconds_that_are_left(table, monkeypatch):
    now, left = [0.0], []
    monkeypatch.setattr(table.tables.time, "monotonic", lambda: now[0])

    def measure():
        for _ in range(2):
            left.append((yield {}))
            now[0] += 20.0

    table.tables.fill({}, {"a": [(measure,)]}, {"a": 50.0}, lambda: None)
    assert left == [50.0, 30.0] and table.tables.too_long(31.0, left[1]).startswith(table.tables.NO_TIME)
    assert not table.tables.too_long(30.0, left[1]) and not table.tables.too_long(1e9, None)


def test_an_error_that_stays_with_the_process_ends_the_table(table, monkeypatch):
    """Every later row would fail too; they are not reached, and another call measures them."""
    result, parts, saved = {}, {"a": [(job, "good"), (job, "bad"), (job, "next")]}, []
    monkeypatch.setattr(table.tables.testing, "gpu_lost", lambda: True)
    with pytest.raises(testing.GpuLost, match="^a bad: RuntimeError: out of memory$"):
        table.tables.fill(result, parts, {"a": 60.0}, lambda: saved.append(json.dumps(result)))
    assert result["a"] == ["good"] and json.loads(saved[-1]) == result
    assert [entry["reason"] for entry in result["not_run"]] == ["RuntimeError: out of memory", "not reached"]
    assert [entry.get("lost") for entry in result["not_run"]] == [True, None]


def test_what_lost_the_gpu_is_left_out_when_the_rest_is_continued(table, monkeypatch):
    """It stays listed, in the parts that are continued and beside others, until its part is measured anew."""
    jobs = {"a": [(job, "good"), (job, "bad"), (job, "next")], "b": [(job, "more")]}
    seconds, result = {"a": 60.0, "b": 60.0}, {}
    with monkeypatch.context() as patches, pytest.raises(testing.GpuLost):
        patches.setattr(testing, "gpu_lost", lambda: True)
        table.tables.fill(result, jobs, seconds, lambda: None)
    lost = {"part": "a", "arguments": ["bad"], "reason": "RuntimeError: out of memory", "lost": True}
    for _ in range(2):
        table.tables.fill(result, jobs, seconds, lambda: None)
        assert result == {"a": ["good", "next"], "b": ["more"], "not_run": [lost]}
    table.tables.fill(result, jobs, {"b": 60.0}, lambda: None)
    assert result["not_run"] == [lost]
    del result["a"]
    jobs["a"] = [(job, "good")]
    table.tables.fill(result, jobs, seconds, lambda: None)
    assert result == {"a": ["good"], "b": ["more"], "not_run": []}


def test_a_row_whose_variant_lost_the_gpu_is_kept(table, monkeypatch):
    def measure(name):
        row = {"ms": {name: 1.0}}
        yield row
        raise testing.GpuLost("atrous: an illegal access")

    result, parts = {}, {"a": [(measure, "x"), (growing(["y"]), 1)]}
    with monkeypatch.context() as patches, pytest.raises(testing.GpuLost, match="a x: GpuLost: atrous: an illegal"):
        patches.setattr(testing, "gpu_lost", lambda: True)
        table.tables.fill(result, parts, {"a": 60.0}, lambda: None)
    table.tables.fill(result, parts, {"a": 60.0}, lambda: None)
    assert result["a"] == [{"ms": {"x": 1.0}, "partial": True, "lost": True}, {"ms": {"y": 1.0}}]
    assert [entry["arguments"] for entry in result["not_run"]] == [["x"]]


def test_a_part_alone_leaves_the_others_as_they_are(table):
    lists = {"part": "b", "arguments": ["1"], "reason": "not reached"}
    result = {"b": ["kept"], "not_run": [lists]}
    parts = {"a": [(job, "one")], "b": [(job, "two")]}
    table.tables.fill(result, parts, {"a": 60.0}, lambda: None)
    assert result == {"a": ["one"], "b": ["kept"], "not_run": [lists]}


def test_only_what_was_not_run_is_continued(table):
    done = []
    jobs = {"a": [(lambda name: done.append(name) or name, name) for name in ("one", "two", "three")]}
    result = {"a": ["one"], "not_run": [{"part": "a", "arguments": ["three"], "reason": "not reached"}]}
    table.tables.fill(result, jobs, {"a": 60.0}, lambda: None)
    assert done == ["three"] and result == {"a": ["one", "three"], "not_run": []}


def test_no_job_begins_that_would_pass_the_budget(table, monkeypatch):
    """A job is assumed to take as long as the longest one before it."""
    now = [0.0]
    monkeypatch.setattr(table.tables.time, "monotonic", lambda: now[0])

    def takes(seconds):
        now[0] += seconds
        return seconds

    result = {}
    table.tables.fill(result, {"a": [(takes, 10.0), (takes, 40.0), (takes, 20.0)]}, {"a": 80.0}, lambda: None)
    assert result["a"] == [10.0, 40.0] and result["not_run"][0]["arguments"] == ["20.0"]


def test_copies_rotate_through_more_than_the_cache(measures):
    created = []
    sets = measures.rotated(lambda: created.append(1) or (torch.ones(4, device=DEVICE),), DEVICE)
    next(sets)
    assert created
    if DEVICE.type == "cuda":
        assert 16 * len(created) >= 2 * torch.cuda.get_device_properties(DEVICE).L2_cache_size


@pytest.fixture
def record(measures):
    return bench_record


@pytest.fixture
def fake_gpu(monkeypatch):
    monkeypatch.delenv("ATROUS_DATE", raising=False)
    known = {
        "is_available": lambda: True, "current_device": lambda: 0, "get_device_name": lambda d: "NVIDIA H100 PCIe",
        # A CUDA build of torch calls these to get the version of cuDNN.
        "device_count": lambda: 1, "get_device_capability": lambda *device: (9, 0),
    }  # fmt: skip
    for name, answer in known.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


def test_a_result_is_named_after_gpu_and_day(fake_gpu, table, record, tmp_path, monkeypatch, capsys):
    def fake_table(device, result, save, batch, seconds):
        assert seconds == {"models": 7.0}
        ceilings = {"matmul_tflops": 1, "copy_gb_s": 1}
        result.update(ceilings=ceilings, convolutions=[], models=[], not_run=[])
        save()

    monkeypatch.setattr(table, "table", fake_table)
    assert table.main([str(tmp_path / "new"), "--part", "models", "--seconds", "7"]) == 0
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == f"nvidia-h100-pcie-{record.datetime.date.today().isoformat()}.json"
    result = json.loads(path.read_text())
    assert result["tables"] == {"cudnn": {"convolutions": [], "models": [], "not_run": []}} and result["ceilings"]
    assert {"device", "driver", "commit", "date", "versions"} <= result.keys() and str(path) in capsys.readouterr().out


def test_a_lost_gpu_is_an_exit_status_and_one_sentence(fake_gpu, table, tmp_path, monkeypatch, capsys):
    def run(args, device, result, save):
        save()
        raise testing.GpuLost("convolutions conv1: an illegal access")

    monkeypatch.setattr(table, "run", run)
    assert table.main([str(tmp_path)]) == testing.GPU_LOST == steps.GPU_LOST
    assert capsys.readouterr() == ("", "bench: the GPU was lost: cudnn, convolutions conv1: an illegal access\n")


def test_only_a_file_of_the_same_gpu_and_commit_is_continued(fake_gpu, table, record, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        table, "run", lambda args, device, result, save: [seen.append(dict(result)), save(), ("", 0)][2]
    )
    assert table.main([str(tmp_path), "--continue"]) == 0 and "models" not in seen[0]  # there is no file yet
    (path,) = tmp_path.iterdir()
    whole = json.loads(path.read_text())
    whole["tables"] |= {"cudnn": {"models": [1], "convolutions": [2]}, "fused": {"layers": [3]}}
    record.write(path, whole)
    assert table.main([str(tmp_path), "--continue"]) == 0 and (seen[1]["models"], seen[1]["convolutions"]) == ([1], [2])
    assert table.main([str(tmp_path), "--part", "models"]) == 0
    assert "models" not in seen[2] and seen[2]["convolutions"] == [2]
    assert table.main([str(tmp_path)]) == 0 and "models" not in seen[3] and "convolutions" not in seen[3]
    assert json.loads(path.read_text())["tables"]["fused"] == {"layers": [3]}
    record.write(path, {**json.loads(path.read_text()), "commit": "another"})
    assert table.main([str(tmp_path), "--continue"]) == 0 and "models" not in seen[4]
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f"{path.stem}-another.json"}


def test_the_benchmarks_are_collected_and_correct():
    """One case of add_act with every backend, checked and not timed."""
    command = [sys.executable, "-m", "pytest", "bench", "-q", "-k", "add_act and layer4", "--providers", "atrous"]
    pytest.importorskip("pytest_benchmark")
    done = subprocess.run([*command, "--benchmark-disable"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_committed_results_are_whole():
    """Every file in bench/results has device, date, versions, and a commit or a demo result."""
    for path in (ROOT / "bench" / "results").glob("*.json"):
        if path.name == "fuzz.json":  # the fuzzer's draws, without measurements
            continue
        result = json.loads(path.read_text())
        assert {"device", "date", "versions"} <= result.keys(), path.name
        assert "commit" in result or "inference" in result, path.name


def test_the_report_shows_the_results(tmp_path):
    row = {"batch": 1, "dtype": "float32", "variant": "atrous", "median_ms": 20.04, "speedup_vs_eager": 1.75}
    result = {
        "device": {"type": "cpu", "name": "a CPU", "threads": 2, "capability": "AVX2"}, "versions": {"torch": "2.13.0"},
        "date": "2026-11-22", "inference": [row], "not_run": [{**row, "variant": "compile", "reason": "none"}],
    }  # fmt: skip
    (tmp_path / "a-cpu.json").write_text(json.dumps(result))
    older = {**result, "date": "2026-11-21", "inference": [{**row, "speedup_vs_eager": 1.25}]}
    (tmp_path / "b-older.json").write_text(json.dumps(older))
    other = {**result["device"], "capability": "AVX512"}
    (tmp_path / "c-other.json").write_text(json.dumps({**older, "device": other}))
    (tmp_path / "a-gpu.json").write_text(json.dumps({"convolutions": []}))
    readme = "above\n<!-- report: begin -->\nold\n<!-- report: end -->\nbelow\n"
    report = bench_report
    written = report.report(readme, tmp_path)
    assert "| atrous frozen | 1.75x; 20.0 ms |" in written and "| torch.compile | not run |" in written
    assert "bench/results/a-cpu.json" in written and "old" not in written and "a-gpu" not in written
    assert "bench/results/c-other.json" in written and written.count("| atrous frozen | 1.25x; 20.0 ms |") == 1
    assert written.startswith("above\n<!-- report: begin -->\n") and written.endswith("<!-- report: end -->\nbelow\n")
    assert report.report(written, tmp_path) == written
    noisy = {**row, "variant": "atrous_frozen", "spread": 0.125, "counted": False}  # a file of today
    (tmp_path / "c-other.json").write_text(json.dumps({**older, "device": other, "inference": [noisy]}))
    assert "| atrous frozen | (1.75x ± 12 %); 20.0 ms |" in report.report(readme, tmp_path)
    (tmp_path / "README.md").write_text("no markers")
    assert report.main([str(tmp_path / "README.md"), str(tmp_path)]) == 2


@pytest.mark.gpu
def test_a_convolution_on_the_gpu(layers, measures):
    assert torch.cuda.is_available()
    row = measures.convolution(layers.layers()[1], "forward", 8, torch.bfloat16, DEVICE)
    assert row["tflops"] > 1
