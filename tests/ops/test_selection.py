"""Backend selection: the rule, the measured tables, and the reasons in errors."""

import importlib.util
import itertools
from unittest import mock

import pytest
import torch
from parameters import CPU_BACKENDS

from atrous import conv_bn_act, fuse, ops, tuning
from atrous.backends import aten, library, native, selection, winograd
from atrous.backends.winograd import Tile
from atrous.core.spec import Epilogue, Spec
from atrous.tuning.device_id import device_name, versions
from atrous.tuning.format import Entry, Table

X, W = torch.randn(1, 4, 8, 8), torch.randn(8, 4, 3, 3)


def test_auto_takes_native_where_it_is_built():
    assert selection.choose("auto", X, W, Spec()).name == ("native" if ops.library_loaded else "library")


@pytest.mark.skipif(not selection.available("triton"), reason="triton runs here")
def test_a_named_backend_that_cannot_run_lists_its_reasons():
    reason = "no CUDA device" if importlib.util.find_spec("triton") else "triton is not installed"
    with pytest.raises(
        RuntimeError,
        match=rf"(?s)backend='triton' cannot run.*triton: {reason}.*input: expected a CUDA.*got torch.float64",
    ):
        conv_bn_act(X.double(), W.double(), backend="triton")


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=f"backend: expected one of auto, {', '.join(selection.backends())}, got 'cudnn'"
    ):
        conv_bn_act(X, W, backend="cudnn")


@pytest.mark.parametrize("name", selection.backends())
def test_available_answers_with_reasons(name):
    assert all(isinstance(reason, str) and reason for reason in selection.available(name))


def test_the_epilogue_adds_a_bias(monkeypatch):
    """A library would add it in a separate pass over the output. With a BatchNorm or a beta the convolution adds it."""
    seen = []
    monkeypatch.setattr(library, "convolution", lambda x, w, bias, spec: seen.append(bias) or x)
    monkeypatch.setattr(library, "epilogue", lambda z, arguments: arguments)
    monkeypatch.setattr(library, "in_compute_dtype", lambda run, x, weights, arguments: run(x, weights, arguments))
    x, bias, beta = mock.Mock(), torch.ones(8), torch.zeros(8)
    assert library.conv_epilogue(x, W, bias, Spec(), Epilogue()).beta is bias and seen == [None]
    norm = Epilogue(mean=torch.zeros(8), var=torch.ones(8))
    assert library.conv_epilogue(x, W, bias, Spec(), norm).beta is None and seen == [None, bias]
    assert library.conv_epilogue(x, W, bias, Spec(), Epilogue(beta=beta)).beta is beta and seen[2:] == [bias]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_result_computed_in_fp32_has_the_layout_of_the_arguments(backend, monkeypatch):
    """A dense copy of a slice with one channel no longer shows that it is channels_last."""
    monkeypatch.setattr(aten, "_EMULATED", {torch.float16})
    x, r = torch.randn(2, 2, 16, 8, 9).half()
    w = torch.randn(16, 4, 2, 3).half().contiguous(memory_format=torch.channels_last)[:, 1:2, 1:, 1:2]
    y = conv_bn_act(x, w, residual=r, groups=16, backend=backend)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def measured(monkeypatch):
    """Returns a function that sets the measured fastest backend of every call."""

    def set_fastest(backend):
        monkeypatch.setattr(tuning, "measured", lambda *call: Entry(backend, None, {backend: 1.0}))

    return set_fastest


def test_auto_takes_the_measured_backend(measured):
    measured("library")
    assert selection.choose("auto", X, W, Spec()).name == "library"
    assert selection.choose("auto", X, W, Spec(), frozen=True).name == "library"
    assert selection.choose("auto", X).name == selection.choose("native", X).name  # the epilogue alone is not measured
    assert selection.choose("native", X, W, Spec()).name == "native"  # a named backend is not replaced


@pytest.mark.skipif(not selection.available("triton"), reason="triton runs here")
def test_the_rule_applies_if_the_measured_backend_cannot_run_here(measured):
    measured("triton")
    assert selection.choose("auto", X, W, Spec()).name == "native"


def test_the_rule_applies_if_the_measured_backend_is_unknown(measured):
    """The table may come from a version that has another backend."""
    measured("cudnn")
    assert selection.choose("auto", X, W, Spec()).name == selection.choose("auto", X).name


@pytest.mark.parametrize("frozen", [False, True])
def test_a_table_in_the_user_s_folder_decides(tuning_folder, frozen):
    """The table is used in eager and compiled calls; when its file is deleted the rule applies again."""
    x, w, spec = torch.randn(2, 64, 9, 9), torch.randn(64, 64, 3, 3), Spec(padding=(1, 1))
    key = tuning.key(x, w, spec, residual=False, frozen=frozen)
    entries = {key: Entry("library", None, {"library": 1.0, "native": 2.0})}
    path = tuning_folder / "here.json"
    tuning.save(path, Table(device_name(x.device), versions(x.device), "2026-11-24", entries))
    assert selection.choose("auto", x, w, spec, frozen=frozen).name == "library"
    assert selection.choose("auto", x, w, spec, frozen=not frozen).name == "native"
    assert selection.choose("auto", x, w, spec, frozen=frozen, residual=True).name == "native"
    compiled = torch.compile(lambda x: conv_bn_act(x, w, padding=1, slope=0.1), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), conv_bn_act(x, w, padding=1, slope=0.1))
    path.unlink()
    tuning.reload()
    assert selection.choose("auto", x, w, spec, frozen=frozen).name == "native"


def counted(size, padding, rate, outputs):
    """Along one axis: tiles of `outputs` that lie `rate` apart, and the taps of a direct convolution inside the map."""
    positions = range(size + 2 * padding - 2 * rate)
    tiles = sum(-(-len(range(phase, len(positions), rate)) // outputs) for phase in range(min(rate, len(positions))))
    return tiles, sum(0 <= o - padding + tap * rate < size for o, tap in itertools.product(positions, range(3)))


@pytest.mark.parametrize("rate", [(1, 1), (2, 3), (4, 4), (6, 1), (12, 7), (24, 36)])
@pytest.mark.parametrize("extra", [(0, 0), (1, 2), (-1, 0)])
def test_tiles_and_taps_are_counted(rate, extra):
    padding = tuple(max(0, r + e) for r, e in zip(rate, extra))
    for size, tile in itertools.product(((64, 33), (73, 75)), (Tile(2, 2), Tile(4, 2))):
        if min(s + 2 * p - 2 * r for s, p, r in zip(size, padding, rate)) < 1:
            continue
        tiles, taps = zip(*(counted(*axis) for axis in zip(size, padding, rate, tile)))
        assert winograd.tiles_of(tile, size, padding, rate) == tiles[0] * tiles[1]
        assert winograd.direct_taps(size, padding, rate) == taps[0] * taps[1]


@pytest.mark.parametrize("rate, channels, reason", [
    (1, (16, 64), "at least 24"), (1, (64, 16), "at least 24"), (1, (24, 24), None), (2, (32, 64), "at least 64"),
    (2, (64, 64), None), (12, (64, 64), "rounding errors"), (12, (128, 64), None), (12, (512, 64), "rounding errors"),
])  # fmt: skip
def test_few_channels_are_direct(rate, channels, reason):
    x, w = torch.empty(4, channels[0], 56, 56), torch.empty(*channels[::-1], 3, 3)
    reasons = native.pack_reasons(x, w, Spec((1, 1), (rate, rate), (rate, rate)))
    assert [reason in text for text in reasons] == [True] if reason else reasons == []


@pytest.mark.parametrize("changed, reason", [
    ({"stride": (2, 2)}, "stride: expected (1, 1), got (2, 2)"),
    ({"stride": (1, 2)}, "stride: expected (1, 1), got (1, 2)"),
    ({"groups": 2}, "groups: expected 1, got 2"), ({"kernel": (3, 1)}, "kernel: expected (3, 3), got (3, 1)"),
    ({"kernel": (5, 5)}, "kernel: expected (3, 3), got (5, 5)"),
    ({"dtype": torch.float64}, "dtype: expected float32, float16 or bfloat16, got torch.float64"),
], ids=["stride", "stride of an axis", "groups", "kernel of an axis", "kernel", "dtype"])  # fmt: skip
def test_other_convolutions_are_direct(changed, reason):
    """They have the size of one that is Winograd's frozen, in training, and for the gradient of the weight."""
    dtype, groups = changed.get("dtype", torch.float32), changed.get("groups", 1)

    def tiles(kernel, spec):
        x, w = torch.empty(8, 64, 56, 56, dtype=dtype), torch.empty(64, 64 // spec.groups, *kernel, dtype=dtype)
        chosen = winograd.tile(x, w, spec), winograd.tile(x, w, spec, True), winograd.gradient_tile(x, w, spec)
        return chosen, winograd.reasons(x, w, spec)

    if dtype == torch.float32:
        assert None not in tiles((3, 3), Spec((1, 1), (1, 1)))[0]
    spec = Spec(changed.get("stride", (1, 1)), (1, 1), groups=groups)
    assert tiles(changed.get("kernel", (3, 3)), spec) == ((None, None, None), [reason])


@pytest.mark.parametrize("dtype, int16, rate, size, channels, tile", [
    (torch.float32, True, 1, (8, 56), 64, Tile(4, 2)), (torch.float32, True, 1, (8, 14), 256, Tile(4, 4)),
    (torch.float32, True, 1, (1, 7), 512, Tile(2, 2)), (torch.float16, True, 1, (8, 56), 64, Tile(4, 4)),
    (torch.bfloat16, True, 2, (8, 56), 64, Tile(4, 4, True)), (torch.bfloat16, True, 2, (1, 7), 512, Tile(2, 2, True)),
    (torch.bfloat16, False, 2, (8, 56), 64, Tile(4, 4)), (torch.bfloat16, True, 16, (8, 56), 64, None),
])  # fmt: skip
def test_tiles(dtype, int16, rate, size, channels, tile, monkeypatch):
    """On processors with and without 16-bit integer products, and with AMX, whose direct convolution is faster."""
    monkeypatch.setattr(winograd, "cpu_multiplies_int16", lambda: int16)
    monkeypatch.setattr(winograd, "cpu_product_rate", lambda dtype: rate)
    winograd._choose.cache_clear()
    x, w = torch.empty(size[0], channels, size[1], size[1], dtype=dtype), torch.empty(channels, channels, 3, 3)
    try:
        assert winograd.tile(x, w.to(dtype), Spec((1, 1), (1, 1))) == tile
    finally:
        winograd._choose.cache_clear()


@pytest.mark.parametrize("size, rate, name", [
    (64, 1, "native"), (64, 4, "native"), (64, 12, "native"), (64, 24, "library"), (64, 36, "library"),
    (33, 12, "library"), (7, 1, "native"),
])  # fmt: skip
def test_a_large_dilation_is_direct(size, rate, name):
    """DeepLabv3's rates: most taps read padding, which a direct convolution leaves out."""
    x, w, spec = torch.empty(1, 256, size, size), torch.empty(256, 256, 3, 3), Spec((1, 1), (rate, rate), (rate, rate))
    assert selection.choose("auto", x, w, spec, frozen=True).name == name
    assert ("size: expected one" in "".join(native.pack_reasons(x, w, spec))) == (name == "library")
    conv, bn = torch.nn.Conv2d(64, 64, 3, padding=rate, dilation=rate, bias=False), torch.nn.BatchNorm2d(64)
    model, image = torch.nn.Sequential(conv, bn, torch.nn.PReLU()).eval(), torch.randn(1, 64, size, size)
    fused = fuse(model, freeze=True)
    with torch.no_grad():
        torch.testing.assert_close(fused(image), model(image), rtol=1e-4, atol=1e-4)
