"""Which operators each row calls for tensors on a card: fake ones, so that no card is needed."""

from __future__ import annotations

import pytest
import torch
from names import Names

import atrous
from atrous import tuning
from atrous.autograd import recompute
from atrous.backends import selection, training
from atrous.backends import triton as triton_row
from atrous.core.spec import Spec, accumulate_type
from atrous.ops import device_support, triton_impl

pytestmark = pytest.mark.skipif(not atrous.ops.library_loaded, reason="libatrous.so is not built here")


@pytest.fixture
def card(monkeypatch):
    """Makes this machine look as if it had a card; returns what says whether Triton and the library run on it."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    # Layouts do not count here, and a torch without CUDA copies not even a fake tensor.
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x, memory_format=None: x)
    monkeypatch.setattr(triton_row, "available", lambda: [])
    monkeypatch.setattr(device_support, "capability", lambda device: (9, 0))

    def has(triton=True, image=True):
        monkeypatch.setattr(triton_impl, "triton_found", triton)
        monkeypatch.setattr(triton_impl, "atrous_runs", lambda device: image)
        monkeypatch.setattr(device_support, "lacks", lambda device: () if image else ("no image",))

    has()
    with torch._subclasses.FakeTensorMode():
        yield has


def called(row, dtype=torch.float16, training=False):
    options = dict(dtype=dtype, device="cuda", memory_format=torch.channels_last)
    x, w = torch.empty(2, 8, 6, 6, **options), torch.empty(4, 8, 3, 3, **options)
    vectors = [torch.empty(4, dtype=accumulate_type(dtype), device="cuda") for _ in range(4)]
    with Names() as names, torch.no_grad():  # without a card torch ends the process where it records
        atrous.conv_bn_act(x, w, None, *vectors, slope=0.1, training=training, backend=row)
    return names.ours


@pytest.mark.parametrize(
    "row, inference, trains",
    [
        ("native", ["atrous::_conv_epilogue"], ["aten::convolution", "atrous::_statistics", "atrous::_epilogue"]),
        ("triton", ["atrous_triton::_conv_epilogue"], ["atrous_triton::_conv_statistics", "atrous_triton::_epilogue"]),
        (
            "library",
            ["aten::convolution", "atrous_triton::_epilogue"],
            ["aten::convolution", "atrous_triton::_statistics", "atrous_triton::_epilogue"],
        ),
    ],
)
def test_operators_of_a_row(card, row, inference, trains):
    assert called(row) == inference and called(row, training=True) == trains
    if row == "library":
        assert called("auto") == inference and called("auto", training=True) == trains


def test_row_library_without_triton(card):
    card(triton=False)
    assert called("library", training=True) == ["aten::convolution", "atrous::_statistics", "atrous::_epilogue"]
    card(triton=False, image=False)  # the operator that goes on in plain torch
    assert called("library") == ["aten::convolution", "atrous_triton::_epilogue"]


def test_row_native_in_fp32(card, monkeypatch):
    assert called("native", torch.float64) == ["atrous::_conv_epilogue"]
    for tf32, expected in ((True, ["atrous::_conv_epilogue"]), (False, ["aten::convolution", "atrous::_epilogue"])):
        monkeypatch.setattr(tuning, "tf32", lambda tf32=tf32: tf32)
        assert called("native", torch.float32) == expected


def test_winograd_is_the_cpu_s_alone(card):
    x = torch.empty(4, 32, 32, 32, device="cuda", memory_format=torch.channels_last)
    w = torch.empty(32, 32, 3, 3, device="cuda", memory_format=torch.channels_last)
    row = selection.rows()["native"]
    spec = Spec(padding=(1, 1))
    assert "device: expected cpu, got cuda:0" in row.pack_reasons(x, w, spec) and row.pack(x, w, spec) is w
    with Names() as names:
        row.convolution(x, w, None, spec)
    assert names.ours == ["aten::convolution"]


def test_a_frozen_weight_is_laid_out_as_the_input_is(card, monkeypatch):
    """On a card; on a CPU one pack serves inputs of both layouts."""
    asked, row, weight = [], selection.rows()["native"], torch.empty(8, 8, 3, 3, device="cuda")
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x, memory_format=None: asked.append(memory_format) or x)
    layouts = [torch.channels_last, torch.contiguous_format]
    inputs = [torch.empty(2, 8, 6, 6, device="cuda", memory_format=layout) for layout in layouts]
    for x in inputs:
        row.pack(x, weight, Spec())
    assert asked == layouts and len({row.pack_key(x, weight, Spec()) for x in inputs}) == 2
    inputs = [torch.empty(2, 8, 6, 6, memory_format=layout) for layout in layouts]
    assert len({row.pack_key(x, torch.empty(8, 8, 3, 3), Spec()) for x in inputs}) == 1


@pytest.mark.parametrize("row, namespace", [("native", "atrous"), ("triton", "atrous_triton")])
def test_what_is_computed_again_is_so_by_the_row_that_computed_it(monkeypatch, row, namespace):
    """Whoever keeps the recipe; on shapes alone, since gradients of tensors on a card need one."""
    monkeypatch.setattr(triton_row, "available", lambda: [])
    x, w = torch.empty(2, 8, 6, 6, device="meta"), torch.empty(8, 8, 3, 3, device="meta", requires_grad=True)
    y = atrous.conv_bn_act(x, w, padding=1, slope=torch.empty(8, device="meta"), backend=row)
    with Names() as names:
        recompute.value(recompute.keep(y))
        atrous.conv_bn_act(y, w, padding=1, backend="library").sum().backward()
    assert [name for name in names.ours if "again" in name] == [f"{namespace}::_epilogue_again"] * 2


def test_on_a_cpu_the_epilogue_is_the_library_s(card):
    with torch._subclasses.FakeTensorMode():
        assert training.primitive("_epilogue", torch.empty(1)) is torch.ops.atrous._epilogue
