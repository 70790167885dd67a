"""CUDA graphs: a call during capture works, or a named backend says that its kernel was not compiled before."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from names import OperatorNames
from torch import nn
from triton_cases import on_gpu

import atrous
from atrous.backends import library, selection
from atrous.core.spec import Epilogue, Spec
from atrous.ops import device_support, triton_impl

pytest.importorskip("triton")

from atrous.triton_kernels import launch as launching  # noqa: E402
from atrous.triton_kernels.launch import NotCompiled, Plan, launch  # noqa: E402

GPU = torch.device("cuda", 0)
REASONS = device_support.native_reasons(GPU) if torch.cuda.is_available() else ["no GPU"]
BACKENDS = [
    "auto",
    "triton",
    pytest.param("native", marks=pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))),
]


class Kernel:
    """A fake compiled kernel that counts its launches."""

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
    """Makes this machine look as if it had a GPU; the mock's return value says whether a graph is captured."""
    state = mock.Mock(return_value=False)
    with (
        mock.patch.object(torch.cuda, "device", lambda device: contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", state),
        mock.patch.object(launching, "_launched", set()),
    ):
        yield state


def test_under_capture_only_kernels_that_were_launched_before(capturing):
    kernel, x = Kernel(), torch.zeros(64)
    launch(Plan(kernel, 1, (3,), {"BLOCK": 64}), GPU, (x, None))
    capturing.return_value = True
    launch(Plan(kernel, 1, (4,), {"BLOCK": 64}), GPU, (torch.zeros(128), None))  # sizes do not matter
    assert kernel.launched == 2
    for tensors, size, block in [
        ((x, None), 3, 128),
        ((x, x), 3, 64),
        ((x.half(), None), 3, 64),
        ((x[1:], None), 3, 64),  # 16 bytes do not divide its address
        ((x, None), 2**31, 64),
    ]:
        with pytest.raises(NotCompiled, match="kernel: a CUDA graph is being captured .* call it once"):
            launch(Plan(kernel, 1, (size,), {"BLOCK": block}), GPU, tensors)
    with pytest.raises(NotCompiled):
        launch(Plan(kernel, 1, (3,), {"BLOCK": 64}), torch.device("cuda", 1), (x, None))
    assert kernel.launched == 2


def test_a_launch_that_failed_is_not_remembered(capturing):
    kernel = mock.MagicMock(__name__="kernel")
    kernel.__getitem__.return_value.side_effect = RuntimeError("no image")
    plan = Plan(kernel, 1, (), {})
    with pytest.raises(RuntimeError, match="no image"):
        launch(plan, GPU, ())
    capturing.return_value = True
    with pytest.raises(NotCompiled):
        launch(plan, GPU, ())


def test_the_second_launch_of_a_plan_reuses_its_compiled_kernel(capturing):
    """Its arguments are in the kernel's order, constants by position; tensors of another dtype compile again."""
    kernel, code, wide = (mock.MagicMock(arg_names=("x", "y", "eps", "size", "BLOCK")) for _ in range(3))
    kernel.__getitem__.return_value.side_effect = [code, wide]
    plan, x = Plan(kernel, 7, (3,), {"BLOCK": 64, "num_warps": 4}), torch.zeros(64)
    for tensors in ((x, None), (x, None), (x.double(), None), (x[4:], None)):
        launch(plan, GPU, tensors, (0.5,))
    calls = kernel.__getitem__.return_value.call_args_list
    assert [c.kwargs for c in calls] == [{"BLOCK": 64, "num_warps": 4}] * 2
    assert [c.args[2:] for c in calls] == [(0.5, 3)] * 2 and calls[1].args[0].dtype == torch.float64
    assert code.__getitem__.call_args_list == [mock.call((7, 1, 1))]
    launched = [c.args for c in code.__getitem__.return_value.call_args_list]
    assert launched == [(x, None, 0.5, 3, 64), (mock.ANY, None, 0.5, 3, 64)]
    assert not wide.__getitem__.return_value.called


def test_auto_runs_the_library_if_the_kernel_is_not_compiled():
    x, w = torch.randn(1, 4, 8, 8), torch.randn(6, 4, 3, 3)
    arguments = x, w, None, Spec(padding=(1, 1)), Epilogue(slope_kind="relu")
    not_compiled = mock.Mock(side_effect=NotCompiled("no"))
    assert torch.equal(selection.compiled_or_library(not_compiled)(*arguments), library.conv_epilogue(*arguments))
    compiled = mock.Mock(return_value=x)
    assert selection.compiled_or_library(compiled)(*arguments) is x and compiled.call_args.args == arguments


@pytest.mark.parametrize("triton", [True, False], ids=["not compiled", "no Triton"])
@pytest.mark.parametrize("image", [True, False], ids=["image", "no image"])
def test_without_triton_the_library_runs_or_plain_torch_if_it_has_no_image(monkeypatch, triton, image):
    z, kernel = torch.randn(2, 3, 4, 4), mock.Mock(side_effect=NotCompiled("no"))
    monkeypatch.setattr(triton_impl, "triton_runs", lambda device: triton)
    monkeypatch.setattr(triton_impl, "atrous_runs", lambda device: image)
    monkeypatch.setattr(triton_impl, "launchers", lambda: {"_epilogue": kernel})
    with OperatorNames() as names:
        y = triton_impl._epilogue(z, *Epilogue(slope_kind="relu"))
    assert torch.equal(y, z.relu()) and kernel.called == triton
    assert ("atrous::_epilogue" in names.called) == image


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_without_triton_a_convolution_is_torch_s_own(monkeypatch, layout):
    """torch.ops.atrous does not compute every convolution on a GPU."""
    x, w = torch.randn(2, 6, 5, 4).contiguous(memory_format=layout), torch.randn(4, 3, 3, 3)
    monkeypatch.setattr(triton_impl, "triton_runs", lambda device: False)
    monkeypatch.setattr(triton_impl, "atrous_runs", lambda device: True)
    geometry, z = ([1, 1], [1, 1], [1, 1], 2), torch.conv2d(x, w, padding=1, groups=2)
    with OperatorNames() as names:
        y = triton_impl._conv_epilogue(x, w, None, *geometry, *Epilogue(slope_kind="relu", residual=z))
        same, mean, _ = triton_impl._conv_statistics(x, w, None, *geometry)
    assert names.ours == ["aten::convolution", "atrous::_epilogue", "aten::convolution", "atrous::_statistics"]
    torch.testing.assert_close((y, same, mean), ((2 * z).relu(), z, z.mean((0, 2, 3))))
    assert y.is_contiguous(memory_format=layout)


@on_gpu
def test_a_capture_without_a_call_before():
    """A named backend raises; auto works, and the replayed graph gives the result of a call."""
    x = torch.randn(2, 48, 9, 7, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    w = torch.randn(40, 48, 3, 3, device="cuda", dtype=torch.bfloat16)
    torch.conv2d(x, w)  # creates cuDNN's handle before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with mock.patch.object(launching, "_launched", set()), torch.cuda.graph(graph):
        with pytest.raises(NotCompiled):
            atrous.conv_bn_act(x, w, slope="relu", backend="triton")
        y = atrous.conv_bn_act(x, w, slope="relu")
    graph.replay()
    torch.testing.assert_close(y, torch.conv2d(x, w).relu(), rtol=2e-2, atol=2e-2)


@on_gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frozen_model_as_a_graph(backend):
    model = atrous.models.resnet34(act="prelu", output_stride=8).cuda().bfloat16().eval()
    frozen = atrous.fuse(model, backend=backend, freeze=True)
    x = torch.randn(1, 3, 96, 96, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        other = torch.randn_like(x)
        expected = [frozen(images) for images in (x, other)]  # before: `graphed` is the same module, with a new forward
        graphed = torch.cuda.make_graphed_callables(frozen, (x.clone(),))
        for images, y in zip((x, other), expected):
            assert torch.equal(graphed(images), y)


@on_gpu
@pytest.mark.parametrize("backend", BACKENDS)
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
