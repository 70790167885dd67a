"""CUDA graphs: a call during capture always works, or a named row says that it was not compiled before."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from names import Names
from torch import nn
from triton_cases import on_card

import atrous
from atrous.backends import library, selection
from atrous.core.spec import Epilogue, Spec
from atrous.ops import device_support, triton_impl

pytest.importorskip("triton")

from atrous.triton_kernels import launch as launching  # noqa: E402
from atrous.triton_kernels.launch import NotCompiled, Plan, launch  # noqa: E402

CARD = torch.device("cuda", 0)
LACKS = device_support.lacks(CARD) if torch.cuda.is_available() else ["no card"]
ROWS = ["auto", "triton", pytest.param("native", marks=pytest.mark.skipif(bool(LACKS), reason="; ".join(LACKS)))]


class Kernel:
    """Stands in for a compiled kernel and counts its launches."""

    __name__ = "kernel"
    arg_names = ("x", "y", "size", "BLOCK")

    def __init__(self):
        self.launched = 0

    def __getitem__(self, grid):
        def run(*arguments, **constants):
            self.launched += 1

        return run


@pytest.fixture
def capturing():
    """Makes this machine look as if it had a card, and one that captures or not."""
    state = mock.Mock(return_value=False)
    with (
        mock.patch.object(torch.cuda, "device", lambda device: contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", state),
        mock.patch.object(launching, "_launched", set()),
    ):
        yield state


def test_under_capture_only_what_was_launched_before(capturing):
    kernel, x = Kernel(), torch.zeros(64)
    launch(Plan(kernel, 1, (3,), {"BLOCK": 64}), CARD, (x, None))
    capturing.return_value = True
    launch(Plan(kernel, 1, (4,), {"BLOCK": 64}), CARD, (torch.zeros(128), None))  # sizes do not matter
    assert kernel.launched == 2
    for tensors, size, block in [
        ((x, None), 3, 128),
        ((x, x), 3, 64),
        ((x.half(), None), 3, 64),
        ((x[1:], None), 3, 64),  # 16 bytes do not divide its address
        ((x, None), 2**31, 64),
    ]:
        with pytest.raises(NotCompiled, match="kernel: a CUDA graph is being captured .* call it once"):
            launch(Plan(kernel, 1, (size,), {"BLOCK": block}), CARD, tensors)
    with pytest.raises(NotCompiled):
        launch(Plan(kernel, 1, (3,), {"BLOCK": 64}), torch.device("cuda", 1), (x, None))
    assert kernel.launched == 2


def test_a_launch_that_failed_is_not_remembered(capturing):
    kernel = mock.MagicMock(__name__="kernel")
    kernel.__getitem__.return_value.side_effect = RuntimeError("no image")
    plan = Plan(kernel, 1, (), {})
    with pytest.raises(RuntimeError, match="no image"):
        launch(plan, CARD, ())
    capturing.return_value = True
    with pytest.raises(NotCompiled):
        launch(plan, CARD, ())


def test_the_second_launch_of_a_plan_takes_its_code(capturing):
    """With the arguments in the kernel's order, constants by their places; other tensors take their own code."""
    kernel, code, wide = (mock.MagicMock(arg_names=("x", "y", "eps", "size", "BLOCK")) for _ in range(3))
    kernel.__getitem__.return_value.side_effect = [code, wide]
    plan, x = Plan(kernel, 7, (3,), {"BLOCK": 64, "num_warps": 4}), torch.zeros(64)
    for tensors in ((x, None), (x, None), (x.double(), None), (x[4:], None)):
        launch(plan, CARD, tensors, (0.5,))
    calls = kernel.__getitem__.return_value.call_args_list
    assert [c.kwargs for c in calls] == [{"BLOCK": 64, "num_warps": 4}] * 2
    assert [c.args[2:] for c in calls] == [(0.5, 3)] * 2 and calls[1].args[0].dtype == torch.float64
    assert code.__getitem__.call_args_list == [mock.call((7, 1, 1))]
    launched = [c.args for c in code.__getitem__.return_value.call_args_list]
    assert launched == [(x, None, 0.5, 3, 64), (mock.ANY, None, 0.5, 3, 64)]
    assert not wide.__getitem__.return_value.called


def test_auto_takes_the_library_for_what_is_not_compiled():
    x, w = torch.randn(1, 4, 8, 8), torch.randn(6, 4, 3, 3)
    call = x, w, None, Spec(padding=(1, 1)), Epilogue(slope_kind="relu")
    refuses = mock.Mock(side_effect=NotCompiled("no"))
    assert torch.equal(selection.compiled_or_library(refuses)(*call), library.conv_epilogue(*call))
    works = mock.Mock(return_value=x)
    assert selection.compiled_or_library(works)(*call) is x and works.call_args.args == call


@pytest.mark.parametrize("triton", [True, False], ids=["not compiled", "no Triton"])
@pytest.mark.parametrize("image", [True, False], ids=["image", "no image"])
def test_in_place_of_triton_is_the_library_or_plain_torch_where_it_has_no_image(monkeypatch, triton, image):
    z, said = torch.randn(2, 3, 4, 4), mock.Mock(side_effect=NotCompiled("no"))
    monkeypatch.setattr(triton_impl, "triton_runs", lambda device: triton)
    monkeypatch.setattr(triton_impl, "atrous_runs", lambda device: image)
    monkeypatch.setattr("atrous.triton_kernels.pointwise.forward.epilogue", said)
    with Names() as names:
        y = triton_impl._epilogue(z, *Epilogue(slope_kind="relu"))
    assert torch.equal(y, z.relu()) and said.called == triton
    assert ("atrous::_epilogue" in names.called) == image


@on_card
def test_a_capture_without_a_call_before():
    """A named row says so, auto works; what was captured gives the same as a call."""
    x = torch.randn(2, 48, 9, 7, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    w = torch.randn(40, 48, 3, 3, device="cuda", dtype=torch.bfloat16)
    torch.conv2d(x, w)  # cuDNN's own handle
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with mock.patch.object(launching, "_launched", set()), torch.cuda.graph(graph):
        with pytest.raises(NotCompiled):
            atrous.conv_bn_act(x, w, slope="relu", backend="triton")
        y = atrous.conv_bn_act(x, w, slope="relu")
    graph.replay()
    torch.testing.assert_close(y, torch.conv2d(x, w).relu(), rtol=2e-2, atol=2e-2)


@on_card
@pytest.mark.parametrize("backend", ROWS)
def test_a_frozen_model_as_a_graph(backend):
    model = atrous.models.resnet34(act="prelu", output_stride=8).cuda().bfloat16().eval()
    frozen = atrous.fuse(model, backend=backend, freeze=True)
    x = torch.randn(1, 3, 96, 96, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = frozen(x)
        graphed = torch.cuda.make_graphed_callables(frozen, (x.clone(),))
        other = torch.randn_like(x)
        assert torch.equal(graphed(x), expected)
        assert torch.equal(graphed(other), frozen(other))


@on_card
@pytest.mark.parametrize("backend", ROWS)
def test_reduce_overhead(backend):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(64), nn.PReLU(64),
        nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(),
    ).cuda().bfloat16().eval()  # fmt: skip
    frozen = atrous.fuse(model, backend=backend, freeze=True)
    compiled = torch.compile(frozen, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(4):  # warm-up, capture, replays
            x = torch.randn(2, 64, 28, 28, device="cuda", dtype=torch.bfloat16)
            torch.testing.assert_close(compiled(x).clone(), frozen(x), rtol=2e-2, atol=2e-2)
