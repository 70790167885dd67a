"""Tests of the table of fused layers and networks on tiny sizes: its rows and its file."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from parameters import CPU_BACKENDS

import atrous
from atrous import tuning
from atrous.tools import timing
from atrous.triton_kernels.conv.configs import CONV
from atrous.tuning.device_id import device_name, versions
from atrous.tuning.format import Entry, Table
from bench.tables import fused as fused_table
from bench.tables import fused_layers, fused_models, layers, measures

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
CEILINGS = {"matmul_tflops": 2.0, "copy_gb_s": 100.0}
SMALL = layers.FusedLayer("small", 2, 8, 16, 3, 2, 9, dilation=2, residual=True)


def call_once(monkeypatch):
    """Every call runs once and takes 2 ms."""

    def medians(calls, device, seconds=0.3):
        return {name: [call(), 2.0][1] for name, call in calls.items()}

    for module in (measures, fused_layers, fused_models):
        monkeypatch.setattr(module, "medians", medians)
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)


@pytest.fixture
def quick(monkeypatch):
    call_once(monkeypatch)


# Layers


def test_the_layers_are_those_of_resnet34():
    fusable = layers.fusable_layers()
    assert len(fusable) == 15 and sum(layer.count for layer in fusable) == 36
    assert sum(layer.count for layer in fusable if layer.residual) == 16
    assert [layer.name for layer in fusable if not layer.act] == [f"layer{n}.0.downsample.0" for n in (2, 3, 4)]
    assert fusable[0] == layers.FusedLayer("conv1", 1, 3, 64, 7, 2, 224)
    assert fusable[2] == layers.FusedLayer("layer1.0.conv2", 3, 64, 64, 3, 1, 56, residual=True)
    assert len({str(layer) for layer in layers.dilated(fusable)}) == 12 * 3 + 3


def test_a_layer_has_the_slope_and_residual_of_the_network():
    arguments = atrous.testing.arguments(fused_layers.case(SMALL, 2))
    assert arguments["slope"].shape == (16,) and arguments["residual"].shape == (2, 16, 5, 5)
    assert not arguments["residual_after_act"]
    arguments = atrous.testing.arguments(fused_layers.case(replace(SMALL, act=False, residual=False), 2))
    assert arguments["slope"] == 1.0 and "residual" not in arguments


@pytest.mark.parametrize("backends", sorted({CPU_BACKENDS, CPU_BACKENDS[:1]}))
def test_a_layer_is_measured(backends):
    row = fused_layers.measure(SMALL, 2, torch.float32, CPU, CEILINGS, backends)
    assert list(row["ms"]) == [*backends, "eager", "convolution"]
    assert row["auto"] in CPU_BACKENDS and row["config"] is None
    for name, ms in row["ms"].items():
        assert row["tflops"][name] == pytest.approx(2 * 2 * 16 * 5 * 5 * 8 * 9 / ms / 1e9)
        assert row["of_matmul"][name] == pytest.approx(row["tflops"][name] / 2.0)
    assert list(row["of_bound"]) == [*backends, "eager"]
    values = [row[key] for key in ("layer", "count", "dilation", "residual", "batch", "dtype")]
    assert values == ["small", 2, 2, True, 2, "float32"] and json.loads(json.dumps(row)) == row


def test_a_row_shows_whether_it_was_tuned(quick, tuning_folder):
    """An entry decides for its own dilation; its config serves the shape at any."""
    rows = {}
    for layer in (SMALL, replace(SMALL, dilation=1)):
        rows[layer.dilation] = fused_layers.measure(layer, 2, torch.float32, CPU, CEILINGS, CPU_BACKENDS)
        assert not rows[layer.dilation]["tuned"] and rows[layer.dilation]["config"] is None
    arguments = atrous.testing.arguments(fused_layers.case(SMALL, 2), torch.float32, CPU, torch.channels_last)
    spec = atrous.core.spec.Spec(*SMALL.geometry)
    key = tuning.key(arguments["input"], arguments["weight"], spec, residual=True)
    entry = Entry("library", CONV[0], {"library": 1.0, "triton": 2.0})
    tuning.save(tuning_folder / "a.json", Table(device_name(CPU), versions(CPU), "2026-11-28", {key: entry}))
    rows = {
        dilation: fused_layers.measure(replace(SMALL, dilation=dilation), 2, torch.float32, CPU, CEILINGS, CPU_BACKENDS)
        for dilation in (1, 2)
    }
    assert [(row["tuned"], row["config"]) for row in rows.values()] == [
        (False, CONV[0].describe()),
        (True, CONV[0].describe()),
    ]
    assert rows[2]["auto"] == "library"
    assert "tuned: 1 of 2: of the matmul ceiling" in "\n".join(fused_table._layers(list(rows.values())))


@pytest.mark.gate
def test_a_network_counts_its_tuned_convolutions(monkeypatch):
    fused = atrous.fuse(atrous.models.resnet34().eval(), freeze=True)
    target = fused_models.Target(CPU, torch.float32, torch.channels_last)
    assert fused_models.tuned(fused, (1, 3, 32, 32), "auto", target) == "0 of 36"
    entry = Entry("library", None, {"library": 1.0})
    wide = lambda input, weight, *others: entry if weight.shape[0] == 512 else None  # noqa: E731
    monkeypatch.setattr(tuning, "measured", wide)
    assert fused_models.tuned(fused, (1, 3, 32, 32), "auto", target) == "7 of 36"


def test_the_lower_bound_is_the_slower_of_flop_and_bytes():
    layer = layers.FusedLayer("x", 1, 64, 128, 3, 1, 10, residual=True)
    flop = 2 * 4 * 128 * 100 * 64 * 9
    moved = 2 * (4 * (64 * 100 + 2 * 128 * 100) + 128 * 64 * 9)
    assert fused_layers.lower_bound(layer, 4, 2, {"matmul_tflops": 1e-3, "copy_gb_s": 1e9}) == pytest.approx(flop / 1e6)
    assert fused_layers.lower_bound(layer, 4, 2, {"matmul_tflops": 1e9, "copy_gb_s": 2.0}) == pytest.approx(moved / 2e6)


def test_a_wrong_backend_is_named_and_not_timed(monkeypatch):
    right = atrous.conv_bn_act
    wrong = dict.fromkeys(CPU_BACKENDS, 0.0) | {CPU_BACKENDS[-1]: 1.0}
    monkeypatch.setattr(atrous, "conv_bn_act", lambda backend, **rest: right(backend=backend, **rest) + wrong[backend])
    monkeypatch.setattr(fused_layers, "timed", lambda *arguments: pytest.fail("timed"))
    with pytest.raises(AssertionError, match=f"^{CPU_BACKENDS[-1]}: y: error"):
        fused_layers.measure(SMALL, 2, torch.float32, CPU, CEILINGS, CPU_BACKENDS)


def test_a_graph_holds_a_call_on_every_set(quick, monkeypatch):
    graphs, seen = [], []
    monkeypatch.setattr(fused_layers, "replayed", lambda run, device: [graphs.append(device), run][1])
    sets = [{"input": index} for index in range(4)]
    ms = fused_layers.timed({"a": lambda arguments: seen.append(arguments["input"])}, sets, torch.device("cuda"))
    assert ms == {"a": pytest.approx(2.0 / fused_layers.CALLS)} and len(graphs) == 1
    assert seen == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    sets *= 5
    assert fused_layers.timed({"a": lambda arguments: None}, sets, torch.device("cuda")) == {"a": pytest.approx(0.1)}


def test_only_the_ends_of_a_batch_are_checked():
    x = torch.arange(20.0).reshape(20, 1, 1, 1)
    assert measures.ends(x).flatten().tolist() == [0, 1, 2, 3, 16, 17, 18, 19] and measures.ends(x[:8]).shape[0] == 8
    wide = torch.randn(20, 3, 4, 4).to(memory_format=torch.channels_last)
    assert measures.ends(wide).is_contiguous(memory_format=torch.channels_last)


def test_calls_that_are_not_timed_do_not_search_for_an_algorithm(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with measures.heuristic():
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark


# Networks


@pytest.mark.gate
@pytest.mark.parametrize("backend", ["auto", *CPU_BACKENDS])
def test_a_network_is_measured(quick, backend):
    *_, row = fused_models.measure(fused_models.Network(2, 32), torch.float32, CPU, backend)
    assert tuple(row["ms"]) == fused_models.PLAIN
    assert not row["missing"] and set(row["images_s"].values()) == {1000.0} and json.loads(json.dumps(row)) == row


@pytest.mark.gate
def test_graphs_of_torch_compile_are_for_batch_1(quick):
    variants = fused_models.compiled(1)
    *_, row = fused_models.measure(fused_models.Network(1, 32, 8), torch.float32, CPU, variants=variants)
    assert tuple(row["ms"]) == variants and row["output_stride"] == 8
    assert variants == ("eager_channels_last", "compile", "compile_cudagraph", "atrous_compile_cudagraph")
    assert fused_models.compiled(2) == variants[:2]


def test_a_compilation_begins_only_where_it_may_end(quick):
    """torch.compile cannot be interrupted; the row with the variants before it is complete."""
    network, variants = fused_models.Network(1, 32), ("eager_channels_last", "compile", fused_models.SLOW)
    rows = fused_models.measure(network, torch.float32, CPU, variants=variants)
    row = next(rows)
    for left in (200.0, 200.0, 200.0):
        rows.send(left)
    assert next(rows, None) is None and list(row["ms"]) == ["eager_channels_last", "compile"]
    assert row["missing"] == {fused_models.SLOW: "no time to compile: it may take 240 s, 200 s were left"}


@pytest.mark.gate
def test_a_row_grows_by_a_variant_and_each_is_timed_beside_eager(quick, monkeypatch):
    timed = []
    monkeypatch.setattr(
        fused_models, "medians", lambda calls, *_: timed.append(set(calls)) or dict.fromkeys(calls, 2.0)
    )
    variants = fused_models.BESIDE_SLOW
    rows = fused_models.measure(fused_models.Network(1, 32), torch.float32, CPU, variants=variants)
    assert [list(row["ms"]) for row in rows] == [list(variants[:count]) for count in range(len(variants) + 1)]
    assert timed == [{variants[0], name} for name in variants] + [set(variants)]


@pytest.mark.gate
def test_the_final_timing_leaves_time_for_the_next_network(quick, monkeypatch):
    """It takes a tenth of what is left; the count of tuned convolutions, which takes as long, comes behind it."""
    budgets, counted = [], []

    def medians(calls, device, *seconds):
        budgets.append(seconds)
        return dict.fromkeys(calls, 2.0)

    monkeypatch.setattr(fused_models, "medians", medians)
    monkeypatch.setattr(fused_models, "tuned", lambda *_: counted.append(len(budgets)) or "0 of 36")
    for left, expected in ((30.0, 3.0), (600.0, fused_models.SECONDS)):
        rows = fused_models.measure(fused_models.Network(1, 32), torch.float32, CPU, variants=("eager_channels_last",))
        row = next(rows)
        rows.send(left)
        assert row["tuned"] == "unknown" and budgets[-1] == ()
        with pytest.raises(StopIteration):
            rows.send(left)
        assert budgets[-1] == (pytest.approx(expected),) and row["tuned"] == "0 of 36"
    assert counted == [2, 4]


def test_the_quickest_network_is_measured_first():
    """Its time is also the estimate of the next one's, which begins only if as much is left."""
    assert fused_models.NETWORKS[:3] == tuple(map(fused_models.Network, (1, 256, 32)))


@pytest.mark.gate
def test_a_variant_that_fails_or_disagrees_is_missing_with_its_reason(quick, monkeypatch):
    def compiled(model, **options):
        if options.get("mode"):
            raise RuntimeError("no compiler\nmore")
        return lambda x: model(x) + 1

    monkeypatch.setattr(torch, "compile", compiled)
    variants = ("eager_channels_last", "atrous", "compile", fused_models.SLOW)
    *_, row = fused_models.measure(fused_models.Network(2, 32), torch.float32, CPU, variants=variants)
    assert list(row["ms"]) == ["eager_channels_last", "atrous"]
    assert row["missing"][fused_models.SLOW] == "RuntimeError: no compiler"
    assert row["missing"]["compile"].startswith("disagrees with fp64 by 1")


@pytest.mark.gate
def test_a_variant_that_loses_the_gpu_ends_the_network_and_is_named(quick, monkeypatch):
    def fails(model, **options):
        raise RuntimeError("an illegal access\nmore")

    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(atrous.testing, "gpu_lost", lambda: True)
    variants = ("eager_channels_last", "compile", "atrous")
    rows = fused_models.measure(fused_models.Network(2, 32), torch.float32, CPU, variants=variants)
    row = next(rows)
    with pytest.raises(atrous.testing.GpuLost, match="^compile: RuntimeError: an illegal access$"):
        next(rows), next(rows)
    assert list(row["ms"]) == ["eager_channels_last"] and list(row["missing"]) == ["compile"]


def test_a_graph_reads_the_images_of_its_call():
    run = fused_models.graphed(lambda x: 2 * x, torch.ones(3))
    assert run(torch.full((3,), 5.0)).tolist() == [10.0] * 3 and run(torch.zeros(3)).tolist() == [0.0] * 3


# The table


@pytest.fixture(scope="module")
def table():
    """The whole table for three of the layers."""
    torch.manual_seed(0)  # with one image in fp32 the budget of twice eager's error is narrow
    saved, result = [], {"device": "a CPU", "kind": "fused"}
    small = {"size": 32, "batches": (2, 1), "dtypes": (torch.float32,), "backends": CPU_BACKENDS, "side": 16, "mebi": 1}
    networks = (fused_models.Network(1, 32), fused_models.Network(1, 32, 8))
    with pytest.MonkeyPatch.context() as patches:
        call_once(patches)
        patches.setattr(fused_table, "fusable_layers", lambda size: layers.fusable_layers(size)[:3])
        fused_table.table(CPU, result, lambda: saved.append(json.dumps(result)), networks=networks, **small)
    assert json.loads(saved[-1]) == result and len(saved) > len(result["layers"]) + len(result["networks"])
    return result


@pytest.fixture
def result(table):
    return copy.deepcopy(table)


@pytest.mark.gate
def test_the_whole_table(result):
    assert len(result["layers"]) == 9 * 2 and len(result["networks"]) == 2 and not result["not_run"]
    assert [tuple(row["ms"]) for row in result["compiled"]] == [fused_models.compiled(1)] * 2
    assert [list(row["ms"]) for row in result["max_autotune"]] == [list(fused_models.BESIDE_SLOW)] * 2
    assert [row["batch"] for row in result["layers"]] == [2] * 9 + [1] * 9
    shown = fused_table.show(result)
    for text in ("layer1.0.conv2", "float32, batch 2", "output stride 8, 32x32", "atrous, CUDA graph", "not measured"):
        assert text in shown
    assert not fused_table.wrong(result)


@pytest.mark.gate
def test_a_wrong_result_of_ours_is_the_exit_status(result, monkeypatch):
    result["networks"][0]["missing"]["compile"] = "disagrees with fp64 by 1"
    assert not fused_table.wrong(result)
    result["networks"][0]["missing"]["atrous_cudagraph"] = "disagrees with fp64 by 1"
    assert fused_table.wrong(result) and "disagrees" in fused_table.show(result)
    entry = {"part": "layers", "arguments": ["x"], "reason": "AssertionError: triton: error 1, budget 0.1"}
    assert fused_table.wrong({"networks": [], "not_run": [entry]})
    monkeypatch.setattr(fused_table, "table", lambda device, result, save, seconds: None)
    assert fused_table.run(SimpleNamespace(seconds={}), CPU, result, lambda: None)[1] == 1


@pytest.mark.gate
def test_the_file_is_named_after_gpu_and_day(result, monkeypatch, tmp_path, capsys):
    known = {
        "is_available": lambda: True, "current_device": lambda: 0, "get_device_name": lambda device: "NVIDIA H100",
        # A CUDA build of torch calls these to get the version of cuDNN.
        "device_count": lambda: 1, "get_device_capability": lambda *device: (9, 0),
    }  # fmt: skip
    for name, answer in known.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    rest = {key: value for key, value in result.items() if key not in ("device", "kind")}
    monkeypatch.setattr(fused_table, "table", lambda device, result, save, seconds: [result.update(rest), save()])
    assert fused_table.main([str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    contents = json.loads(path.read_text())
    assert path.name == f"nvidia-h100-{contents['date']}.json"
    assert {"device", "date", "versions", "commit", "ceilings"} <= contents.keys()
    assert contents["tables"]["fused"]["goals"]
    assert str(path) in capsys.readouterr().out


# On a GPU


@pytest.mark.gpu
def test_a_layer_on_the_gpu():
    layer = layers.FusedLayer("small", 1, 64, 64, 3, 1, 28, dilation=2, residual=True)
    row = fused_layers.measure(layer, 4, torch.bfloat16, DEVICE, timing.ceilings(DEVICE, 2048, 64))
    names = [name for name in row["ms"] if name != "native"]  # present only if built for this GPU
    assert names == ["library", "triton", "eager", "convolution"] and min(row["ms"].values()) > 0


@pytest.mark.gpu
def test_a_network_on_the_gpu():
    *_, row = fused_models.measure(fused_models.Network(2, 64), torch.bfloat16, DEVICE, seconds=0.3)
    assert tuple(row["ms"]) == fused_models.PLAIN, row["missing"]
