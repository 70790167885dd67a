"""The operators that each backend calls for CUDA tensors: fake tensors, so that no GPU is needed."""

from __future__ import annotations

import pytest
import torch
from names import OperatorNames

import atrous
from atrous import tuning
from atrous.autograd import recompute
from atrous.backends import aten, native
from atrous.backends import triton as triton_backend
from atrous.core.spec import Epilogue, Spec, accumulate_type
from atrous.ops import device_support, triton_impl

pytestmark = pytest.mark.skipif(not atrous.ops.library_loaded, reason="libatrous.so is not built here")


@pytest.fixture
def gpu(monkeypatch):
    """Makes this machine look as if it had a GPU; the result sets whether Triton and the library run on it."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    # Layouts do not matter here, and a torch without CUDA cannot copy even a fake CUDA tensor.
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x, memory_format=None: x)
    monkeypatch.setattr(triton_backend, "available", lambda: [])
    monkeypatch.setattr(native, "_ask_library", lambda *call: ())  # only a library with kernels for a GPU answers
    monkeypatch.setattr(device_support, "capability", lambda device: (9, 0))

    def configure(triton=True, image=True):
        monkeypatch.setattr(triton_impl, "triton_installed", triton)
        monkeypatch.setattr(triton_impl, "atrous_runs", lambda device: image)
        monkeypatch.setattr(device_support, "native_reasons", lambda device: () if image else ("no image",))

    configure()
    with torch._subclasses.FakeTensorMode():
        yield configure


def called(backend, dtype=torch.float16, training=False):
    options = dict(dtype=dtype, device="cuda", memory_format=torch.channels_last)
    x, w = torch.empty(2, 8, 6, 6, **options), torch.empty(4, 8, 3, 3, **options)
    vectors = [torch.empty(4, dtype=accumulate_type(dtype), device="cuda") for _ in range(4)]
    with OperatorNames() as names, torch.no_grad():  # recording gradients without a GPU ends the process
        atrous.conv_bn_act(x, w, None, *vectors, slope=0.1, training=training, backend=backend)
    return names.ours


@pytest.mark.parametrize(
    "backend, inference, training",
    [
        ("native", ["atrous::_conv_epilogue"], ["atrous::_conv_epilogue", "atrous::_statistics_epilogue"]),
        ("triton", ["atrous_triton::_conv_epilogue"], ["atrous_triton::_conv_statistics", "atrous_triton::_epilogue"]),
        (
            "library",
            ["aten::convolution", "atrous_triton::_epilogue"],
            ["aten::convolution", "atrous_triton::_statistics_epilogue"],
        ),
    ],
)
def test_operators_of_a_backend(gpu, backend, inference, training):
    assert called(backend) == inference and called(backend, training=True) == training
    if backend == "library":
        assert called("auto") == inference and called("auto", training=True) == training


def test_library_without_triton(gpu):
    gpu(triton=False)
    assert called("library", training=True) == ["aten::convolution", "atrous::_statistics_epilogue"]
    gpu(triton=False, image=False)  # this operator then runs in plain torch
    assert called("library") == ["aten::convolution", "atrous_triton::_epilogue"]


@pytest.mark.parametrize("training", [False, True])
def test_native_in_fp32(gpu, monkeypatch, training):
    """Its kernels multiply fp32 in tf32 only."""
    monkeypatch.setattr(tuning, "tf32", lambda: True)
    assert called("native", torch.float32, training)[0] == "atrous::_conv_epilogue"
    monkeypatch.setattr(tuning, "tf32", lambda: False)
    with pytest.raises(RuntimeError, match="native: input: expected tf32 .* got float32 with ieee precision"):
        called("native", torch.float32, training)


@pytest.mark.parametrize("training", [False, True])
def test_native_refuses_what_its_kernels_do_not_compute(gpu, monkeypatch, training):
    """With the library's reasons, which are asked for once per kind of call; auto asks for none."""
    asked = []

    def ask(*call):
        asked.append(call)
        return "groups: expected 1, got 2", "weight: expected less"

    monkeypatch.setattr(native, "_ask_library", ask)
    message = "backend='native' cannot run this call:\n  native: groups: expected 1, got 2\n  native: weight: exp"
    with pytest.raises(RuntimeError, match=message):
        called("native", training=training)
    assert asked == [(torch.float16, True, (2, 8, 6, 6), (4, 8, 3, 3), (1, 1), (0, 0), (1, 1), 1)]
    assert called("auto", training=training)[0] == "aten::convolution" and len(asked) == 1


def test_what_the_library_answers(monkeypatch):
    """One string, which is split; the operator is called once, and no tracer records it."""
    asked = []

    def conv_reasons(*call):
        asked.append(call)
        return "groups: expected 1, got 2; input: expected less" if len(call[-1]) > 1 else ""

    monkeypatch.setattr(torch.ops.atrous, "_conv_reasons", conv_reasons, raising=False)
    native._ask_library.cache_clear()
    for call, expected in (("ab", ("groups: expected 1, got 2", "input: expected less")), ("a", ())):
        assert native._ask_library(call) == native._ask_library(call) == expected
    assert asked == [("ab",), ("a",)]
    native._ask_library.cache_clear()


def test_winograd_runs_on_a_cpu_only(gpu):
    x = torch.empty(4, 32, 32, 32, device="cuda", memory_format=torch.channels_last)
    w = torch.empty(32, 32, 3, 3, device="cuda", memory_format=torch.channels_last)
    spec = Spec(padding=(1, 1))
    assert "device: expected cpu, got cuda:0" in native.pack_reasons(x, w, spec) and native.pack(x, w, spec) is w
    with OperatorNames() as names:
        native.convolution(x, w, None, spec)
    assert names.ours == ["atrous::_conv_epilogue"]


def test_a_frozen_weight_has_the_layout_of_the_input(gpu, monkeypatch):
    """On a GPU; on a CPU one packed weight serves inputs of both layouts."""
    copies, weight = [], torch.empty(8, 8, 3, 3, device="cuda")
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x, memory_format=None: copies.append(memory_format) or x)
    layouts = [torch.channels_last, torch.contiguous_format]
    inputs = [torch.empty(2, 8, 6, 6, device="cuda", memory_format=layout) for layout in layouts]
    for x in inputs:
        native.pack(x, weight, Spec())
    assert copies == layouts and len({native.pack_key(x, weight, Spec()) for x in inputs}) == 2
    inputs = [torch.empty(2, 8, 6, 6, memory_format=layout) for layout in layouts]
    assert len({native.pack_key(x, torch.empty(8, 8, 3, 3), Spec()) for x in inputs}) == 1


@pytest.mark.parametrize("backend, namespace", [("native", "atrous"), ("triton", "atrous_triton")])
def test_an_output_is_recomputed_by_the_backend_that_computed_it(monkeypatch, backend, namespace):
    """Whichever backend saves it. On meta tensors, since gradients of CUDA tensors need a GPU."""
    monkeypatch.setattr(triton_backend, "available", lambda: [])
    x, w = torch.empty(2, 8, 6, 6, device="meta"), torch.empty(8, 8, 3, 3, device="meta", requires_grad=True)
    y = atrous.conv_bn_act(x, w, padding=1, slope=torch.empty(8, device="meta"), backend=backend)
    with OperatorNames() as names:
        recompute.restore(recompute.to_save(y))
        atrous.conv_bn_act(y, w, padding=1, backend="library").sum().backward()
    assert [name for name in names.ours if "again" in name] == [f"{namespace}::_epilogue_again"] * 2


def test_on_a_cpu_the_epilogue_is_torch_ops_atrous(gpu):
    z = torch.empty(1, 1, 1, 1)
    with OperatorNames() as names:
        aten.primitive("_epilogue", z)(z, Epilogue())
    assert names.ours == ["atrous::_epilogue"]
