"""explain: the backend and config of each convolution, the lower bound of its time, and the target."""

import json

import pytest
import torch
from torch import nn

import atrous
from atrous import tuning
from atrous.backends import selection
from atrous.fusion import is_fused
from atrous.models import BasicBlock, ResNet, resnet34
from atrous.tools.explain import explain
from atrous.tools.explain import target as targets
from atrous.tools.explain.conv_layers import ConvLayer, conv_layers
from atrous.tools.explain.report import render
from atrous.tools.explain.target import ASSUMED, Ceilings, target
from atrous.triton_kernels.conv.configs import Conv, conv_config
from atrous.tuning.format import Entry

SHAPE = (1, 3, 224, 224)
RECORDED = {}  # (a model as text, shape, dtype) -> its layers: these tests explain a few models in many ways
GPU = targets.Gpu("sm_90", 132)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Every test sees a machine without a GPU and without a tuning table, wherever it runs."""
    monkeypatch.setattr(targets, "_local_gpu", lambda: None)
    monkeypatch.setattr(tuning, "measured", lambda *arguments: None)
    monkeypatch.setattr(tuning, "ceilings", lambda device: None, raising=False)
    monkeypatch.setattr(explain, "conv_layers", recorded)


def recorded(model, shape):
    """conv_layers, once for plain models of one architecture (test_conv_layers.py tests it)."""
    if is_fused(model):
        return conv_layers(model, shape)
    key = str(model), tuple(shape), {tensor.dtype for tensor in model.parameters()}.pop()
    if key not in RECORDED:
        RECORDED[key] = conv_layers(model, shape)
    return list(RECORDED[key])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return resnet34()


@pytest.fixture
def small():
    return ResNet(BasicBlock, (1, 1, 1, 1))


def explained(model, backend="auto", shape=SHAPE, **options):
    return explain.explain(model, shape, backend, target(model, backend, **options))


def by_name(explanation):
    return {choice.layer.name: choice for choice in explanation.choices}


# Lower bounds in microseconds on an H100 in 16 bits at batch 1, 32 and 256, computed by hand.
LOWER_BOUND_US = {
    "conv1": (0.64, 20.34, 162.71),
    "layer1.0.conv1": (0.29, 9.27, 74.17),
    "layer1.0.conv2": (0.43, 12.87, 102.79),
    "layer2.0.conv1": (0.25, 6.47, 51.43),
    "layer2.0.downsample.0": (0.21, 6.43, 51.39),
    "layer4.0.conv1": (0.84, 4.64, 37.09),
    "layer4.2.conv2": (1.62, 9.27, 74.17),
}


@pytest.mark.parametrize("index, batch", [(0, 1), (1, 32)])
def test_lower_bounds_of_an_h100(model, index, batch):
    explanation = explained(model, "triton", (batch, 3, 224, 224))
    choices = by_name(explanation)
    for name, bounds in LOWER_BOUND_US.items():
        assert choices[name].lower_bound_us == pytest.approx(bounds[index], abs=0.0051), name
    totals = explanation.totals
    assert totals["lower_bound_us"] == pytest.approx(sum(choice.lower_bound_us for choice in explanation.choices))
    assert totals["images_per_second"] == pytest.approx(batch / totals["lower_bound_us"] * 1e6)
    assert totals["measured_us"] is None


def test_the_lower_bound_is_the_higher_of_the_two():
    ceilings = Ceilings(tflops=2.0, gbs=1000.0)
    assert ceilings.lower_bound_us(10**9, 10**6) == pytest.approx(1000.0)  # 2 GFLOP at 2 TFLOP/s
    assert ceilings.lower_bound_us(10**6, 10**9) == pytest.approx(1000.0)  # 1 GB at 1000 GB/s


@pytest.mark.parametrize("options, expected", [
    ({}, (798.0, 3000.0)),
    ({"chip": "sm_90", "dtype": torch.float16}, (798.0, 3000.0)),
    ({"dtype": torch.float32}, (399.0, 3000.0)),
    ({"chip": "sm_80"}, None),
    ({"chip": "sm_100"}, None),
    ({"chip": "sm_80", "ceilings": (250.0, 1500.0)}, (250.0, 1500.0)),
    ({"ceilings": (900.0, 3300.0)}, (900.0, 3300.0)),
])  # fmt: skip
def test_ceilings(small, options, expected):
    ceilings = target(small, "triton", **options).ceilings
    assert (ceilings and ceilings[:2]) == expected
    assert ceilings is None or ceilings.source == ("as given" if "ceilings" in options else ASSUMED)


def test_ieee_has_no_measured_peak(small):
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        assert target(small, "triton", dtype=torch.float32).ceilings is None
        assert target(small, "triton").ceilings is not None
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("chip", targets.CHIPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batch", [1, 64])
def test_configs_are_those_of_a_call(chip, dtype, batch):
    """The key equals the one that the kernels' launcher builds from tensors."""
    describe = pytest.importorskip("atrous.triton_kernels.conv.problem", exc_type=ImportError)
    model = ResNet(BasicBlock, (1, 1, 1, 1), output_stride=8)
    explanation = explained(model, "triton", (batch, 3, 64, 64), chip=chip, dtype=dtype)
    capability, multiprocessors = int(chip[3:]), targets.CHIPS[chip]
    for choice in explanation.choices:
        layer, spec = choice.layer, choice.layer.spec
        x, w = (torch.empty(shape, dtype=dtype, device="meta") for shape in (layer.input, layer.weight))
        key = describe.conv_key(x, w, spec, torch.channels_last)
        key = key._replace(chip=capability, multiprocessors=multiprocessors)
        assert explain.conv_key(layer, explanation.target) == key
        assert choice.config == conv_config(key).describe()


def test_offsets_that_need_64_bits(small):
    wanted = target(small, "triton")
    for batch, int64 in ((2**31 // 3000 - 1000, False), (2**31 // 3000 + 1000, True)):
        layer = ConvLayer("conv", (batch, 1, 1, 1), (3000, 1, 1, 1), atrous.core.spec.Spec())
        assert explain.conv_key(layer, wanted).int64_offsets == int64


def test_only_backend_triton_explains_an_absent_gpu(small):
    assert target(small, "triton").present is False and target(small, "triton").gpu == GPU
    for backend in ("auto", "library", "native"):
        with pytest.raises(ValueError, match=f"chip: expected backend='triton'.* got backend='{backend}'"):
            target(small, backend, chip="sm_90")
        assert target(small, backend).gpu is None
    with pytest.raises(ValueError, match="dtype: backend triton expects float16, bfloat16, float32, got float64"):
        target(small, "triton", dtype=torch.float64)
    with pytest.raises(ValueError, match="backend: expected one of .* got 'cudnn'"):
        target(small, "cudnn")


def test_a_cpu(small):
    wanted = target(small.double())
    assert (wanted.device.type, wanted.dtype, wanted.ceilings) == ("cpu", torch.float64, None)
    assert wanted.layout == torch.contiguous_format
    assert target(small.to(memory_format=torch.channels_last)).layout == torch.channels_last
    explanation = explained(small, "library", dtype=torch.float32, ceilings=(0.1, 10))
    assert {choice.backend for choice in explanation.choices} == {"library"}
    assert {choice.config for choice in explanation.choices} == {None}
    conv1 = by_name(explanation)["conv1"]
    assert conv1.lower_bound_us == pytest.approx(2 * 118_013_952 / 1e5)
    assert conv1.bytes == 4 * (150_528 + 9_408 + 802_816)
    assert explained(small, "library").totals["lower_bound_us"] is None


def test_a_backend_gives_its_reasons(small, monkeypatch):
    monkeypatch.setattr(atrous.ops, "library_error", "libatrous.so is not built")
    with pytest.raises(RuntimeError, match="backend='native' cannot run this call:\n  native: libatrous.so is not"):
        explained(small, "native")
    assert {choice.backend for choice in explained(small).choices} == {"library"}


def test_the_local_gpu(small, monkeypatch):
    monkeypatch.setattr(targets, "_local_gpu", lambda: targets.Gpu("sm_90", 114))
    wanted = target(small)
    assert (wanted.present, wanted.gpu, wanted.dtype) == (True, ("sm_90", 114), torch.bfloat16)
    assert target(small, "auto", chip="sm_90") == wanted
    assert target(small, "native").device.type == "cpu"
    assert target(small, "triton", chip="sm_80").present is False
    with pytest.raises(ValueError, match="chip: expected backend='triton'"):
        target(small, "auto", chip="sm_80")
    explanation = explained(small)
    assert {choice.backend for choice in explanation.choices} == {"library"}  # cuDNN: the rule
    assert "on sm_90\n" in render(explanation)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the backend may run")
def test_a_local_gpu_has_no_fallback(small, monkeypatch):
    monkeypatch.setattr(targets, "_local_gpu", lambda: GPU)
    with pytest.raises(RuntimeError, match="backend='triton' cannot run this call"):
        explained(small, "triton")


@pytest.mark.parametrize("dtype, tflops", [(torch.float16, 600.0), (torch.float32, 300.0), (torch.float64, None)])
def test_ceilings_of_a_tuning_table(small, monkeypatch, dtype, tflops):
    measured = {"matmul_tflops": 600.0, "copy_gb_s": 2800.0}
    monkeypatch.setattr(tuning, "ceilings", lambda device: measured if device.type == "cuda" else None, raising=False)
    assert target(small, "triton").ceilings.tflops == 798.0  # this machine's table does not apply to an absent GPU
    for chip in ("sm_90", "sm_86"):
        monkeypatch.setattr(targets, "_local_gpu", lambda: targets.Gpu(chip, 80))  # noqa: B023
        wanted = target(small, dtype=dtype).ceilings
        assert (wanted and tuple(wanted)) == (tflops and (tflops, 2800.0, "as measured here"))
        assert target(small, dtype=dtype, ceilings=(1.0, 2.0)).ceilings == (1.0, 2.0, "as given")


@pytest.fixture
def measured(monkeypatch):
    """A table with entries for the convolutions with a residual, on a local GPU."""
    entry = Entry("triton", Conv(64, 64, 64, 4, 4, splits=2), {"triton": 0.01, "library": 0.02})

    def lookup(input, weight, spec, residual, frozen=False):
        if not input.is_cuda:  # the layer summary itself, on shapes
            return None
        assert input.dtype == torch.bfloat16 and input.shape[1] == weight.shape[1] * spec.groups
        return entry if residual else None

    monkeypatch.setattr(targets, "_local_gpu", lambda: GPU)
    monkeypatch.setattr(tuning, "measured", lookup)
    monkeypatch.setattr(tuning, "measured_config", lambda *call: entry.config if lookup(*call) else None)
    monkeypatch.setattr(selection.backends()["triton"], "reasons", lambda *arguments: [])


def test_measurements(small, measured):
    explanation = explained(small)
    choices = by_name(explanation)
    conv1, conv2 = choices["conv1"], choices["layer4.0.conv2"]
    assert (conv1.backend, conv1.config, conv1.tuned, conv1.measured_us) == ("library", None, False, None)
    assert (conv2.backend, conv2.config, conv2.tuned) == ("triton", "64x64x64B w4 s4 ptr split2", True)
    assert conv2.measured_us == 10.0 and explanation.totals["measured_us"] is None  # not known of all of them
    text = render(explanation, 160)
    words = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert words["layer"][-1] == "attained" and words["0.conv2"][-1] == "16%"  # layer4: 1.62 us / 10 us
    assert "triton" in words["0.conv2"] and "library" in words["conv1"] and words["conv1"][-1] == "0.64"
    assert "library: 8 of 12 conv" in text and "triton: 4 of 12 conv" in text and "heuristic" not in text
    assert "attained: lower bound / measured time" in text


def test_a_measurement_of_another_backend_or_batch(small, measured):
    named = explained(small, "library")
    assert by_name(named)["layer1.0.conv2"].measured_us == 20.0 and not by_name(named)["layer1.0.conv2"].tuned
    named = explained(small, "triton")
    assert by_name(named)["conv1"].config and not by_name(named)["conv1"].tuned
    assert "8 configs come from the heuristic (see atrous tune)" in render(named)
    near = by_name(explained(small, shape=(3, 3, 224, 224)))["layer1.0.conv2"]  # the table has batch 4
    assert (near.tuned, near.measured_us) == (True, None)


def test_a_time_of_triton_is_that_of_its_config():
    entry = Entry("library", None, {"library": 0.01, "triton": 0.02})
    assert explain._measured_us(entry, "library", 8) == 10.0
    assert explain._measured_us(entry, "triton", 8) is None  # it is the time of a config that the table does not name


def test_everything_measured(small, measured, monkeypatch):
    monkeypatch.setattr(tuning, "measured", lambda *arguments: Entry("library", None, {"library": 0.05}))
    explanation = explained(small)
    assert explanation.totals["measured_us"] == 12 * 50.0
    assert "measured 600.00 us" in render(explanation)


@pytest.mark.gate
@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_table_fits(model, width):
    explanation = explained(model, "triton")
    text = render(explanation, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0] == "for bfloat16, channels_last, on sm_90 (not in this machine)" and lines[1] == ""
    head = next(line for line in lines if line.startswith("layer ")).split()
    assert {"layer", "kernel", "s", "d", "output", "GMAC", "bound"} <= set(head)
    left_out = [line.partition(": ")[2].split(", ") for line in lines if line.startswith("no room for: ")]
    below = [line.partition(": ")[2].split(", ") for line in lines if line.startswith("below a layer: ")]
    absent = {"modules", "params", "p", "backend", "config", "MB"} - set(head)
    assert absent == {*(left_out[0] if left_out else ()), *(below[0] if below else ())}
    assert below == {60: [["config", "MB"]], 80: [["MB"]]}.get(width, [])
    assert ("config" in head) == (width >= 80) and ("modules" in head) == (width == 160)
    words = {line.split()[0]: line for line in lines if line.strip()}
    config = by_name(explanation)["conv1"].config
    assert (config in words["conv1"]) == (width >= 80)
    assert (f"    {config}, 1.93 MB" in lines) == (width < 80)
    assert words["conv1"].endswith(" 0.64") and words["layer1:"].endswith(" 2.15")
    flat = " ".join(text.split())
    assert "convolutions: 3.663 GMAC, 59.65 MB, lower bound 20.05 us (at most 49,864 img/s)" in flat
    assert f"bound: lower bound in us, for 798 TFLOP/s and 3000 GB/s, {ASSUMED}" in flat
    assert "backend triton: 36 of 36 convolutions" in lines and "36 configs come from the heuristic" in flat


@pytest.mark.parametrize("width", [60, 80])
def test_without_ceilings_there_is_no_lower_bound(model, width):
    text = render(explained(model, "triton", chip="sm_80"), width)
    assert max(map(len, text.splitlines())) <= width
    assert "on sm_80 (not in this machine)" in text and "--ceilings TFLOPS,GBS" in text
    assert " bound" not in text.partition("\n---")[0]


def test_json(small):
    explanation = explained(small, "triton")
    result = json.loads(json.dumps(explanation.as_dict()))
    assert result["target"] == {
        "device": "cuda", "dtype": "bfloat16", "layout": "channels_last", "present": False,
        "gpu": {"chip": "sm_90", "multiprocessors": 132},
        "ceilings": {"tflops": 798.0, "gbs": 3000.0, "source": ASSUMED},
    }  # fmt: skip
    assert result["totals"]["bytes"] == sum(choice["bytes"] for choice in result["convolutions"])
    conv = next(choice for choice in result["convolutions"] if choice["name"] == "layer1.0.conv2")
    assert (conv["residual"], conv["backend"], conv["measured_us"]) == ("before", "triton", None)
    assert (conv["input"], conv["weight"], conv["output"]) == ([1, 64, 56, 56], [64, 64, 3, 3], [1, 64, 56, 56])
    assert (conv["stride"], conv["padding"], conv["dilation"], conv["groups"]) == ([1, 1], [1, 1], [1, 1], 1)
    layers = {layer["name"]: layer for layer in result["layers"]}
    names = ("backend", "config", "bytes", "lower_bound_us", "macs")
    assert all(layers["layer1.0.conv2"][name] == conv[name] for name in names)
    assert layers["maxpool"]["backend"] is None


class Odd(nn.Module):
    """A module that runs twice, a fused module, and a convolution outside of every module."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(8, 8, 3)
        self.fused = atrous.nn.ConvBNAct2d(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.kernel = nn.Parameter(torch.zeros(4, 16, 1, 1))

    def forward(self, x):
        return nn.functional.conv2d(self.fused(self.twice(self.twice(x))), self.kernel)


def test_convolutions_find_their_layers():
    explanation = explained(Odd(), "library", (1, 8, 10, 10))
    moved = [4 * (800 + 576 + 512), 4 * (512 + 576 + 288), 4 * (288 + 128 + 576)]
    assert [(layer.name, layer.bytes) for layer in explanation.summary.layers] == list(
        zip(("twice", "twice", "fused"), moved)
    )
    assert explanation.totals["bytes"] == sum(moved) + 4 * (576 + 64 + 144)
    assert "library: 4 of 4 convolutions" in render(explanation)


def test_a_frozen_model(small):
    frozen = explained(atrous.fuse(small.eval(), freeze=True))
    assert [choice.layer for choice in frozen.choices] == [choice.layer for choice in explained(small).choices]
    backends = {layer.backend for layer in frozen.summary.layers if "Conv" in layer.kind}
    assert backends == {choice.backend for choice in frozen.choices}
    assert by_name(frozen)["conv1"].backend == "library"  # 7x7: native runs it unfrozen but has no prepacked form


def test_no_convolution():
    text = render(explained(nn.Linear(3, 4), shape=(2, 3)))
    assert "convol" not in text.replace("0.000 of it in convolutions", "") and "MB" not in text
