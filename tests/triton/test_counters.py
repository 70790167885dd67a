"""Arrival counters: zero after each launch, separate for streams and captures, filled anew when the pool is used up."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from triton_cases import DEVICE, PATHS, interpret, on_device, on_gpu

from atrous.core.spec import Epilogue
from atrous.triton_kernels import counters
from atrous.triton_kernels.conv import forward as conv
from atrous.triton_kernels.pointwise import backward as gradients

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu():
    """Makes the machine look as if it had a GPU; `capturing` and `stream` are its state."""
    state = SimpleNamespace(capturing=False, stream=0)
    with (
        mock.patch.object(counters, "_pools", {}),
        mock.patch.object(counters, "_allocate", lambda device: torch.zeros(1024, dtype=torch.int32)),
        mock.patch.object(torch.cuda, "device", lambda device: contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: state.capturing),
        mock.patch.object(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=state.stream)),
    ):
        yield state


def span(tensor: torch.Tensor) -> set[int]:
    return set(range(tensor.data_ptr(), tensor.data_ptr() + 4 * tensor.numel()))


def test_launches_of_one_stream_share_a_slice_and_two_streams_do_not(gpu):
    first = counters.counters(GPU, 100)
    assert span(counters.counters(GPU, 60)) == span(first) and first.numel() >= 100
    gpu.stream = 7
    assert not span(counters.counters(GPU, 100)) & span(first)


def test_a_stream_that_needs_more_gets_another_slice(gpu):
    first = counters.counters(GPU, 1)
    second = counters.counters(GPU, first.numel() + 1)
    assert second.numel() > first.numel() and not span(second) & span(first)


def test_every_captured_launch_has_its_own_slice(gpu):
    slices = [counters.counters(GPU, 33)]
    gpu.capturing = True
    slices += [counters.counters(GPU, 33) for _ in range(4)]
    gpu.capturing = False
    slices += [counters.counters(GPU, 33)]
    assert span(slices[0]) == span(slices[-1])
    assert len(set.union(*map(span, slices[:-1]))) == sum(len(span(part)) for part in slices[:-1])
    assert all(part.data_ptr() % 128 == slices[0].data_ptr() % 128 for part in slices)


def test_without_a_pool_or_with_a_used_up_one_the_launch_fills_its_own(gpu):
    gpu.capturing = True
    with mock.patch.object(torch, "zeros", return_value="filled") as zeros:  # before any call
        assert counters.counters(GPU, 5) == "filled"
    assert zeros.call_args.kwargs["device"] == GPU
    gpu.capturing = False
    counters.counters(GPU, 5)
    gpu.capturing = True
    for _ in range(2):
        assert isinstance(counters.counters(GPU, 300), torch.Tensor)
    with mock.patch.object(torch, "zeros", return_value="filled"):
        assert counters.counters(GPU, 300) == "filled"


def nonzero_counters() -> int:
    """The number of counters that launches have not reset."""
    return sum(int(pool.array.count_nonzero()) for pool in counters._pools.values())


@on_device
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_every_kind_of_launch_leaves_zeros(layout):
    """Split-K, statistics and the sums, twice: the second launch uses the counters of the first."""
    path = PATHS["splits"]
    call = path.call(torch.float32, layout)
    format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    convolve = lambda: conv.conv_epilogue(*call, memory_format=format, config=path.config)  # noqa: E731
    z = torch.randn(2, 5, 9, 7, device=DEVICE).contiguous(memory_format=format)
    reduce = lambda: gradients.epilogue_reduce(z, z, Epilogue(slope_kind="relu"))  # noqa: E731
    for run in (convolve, lambda: gradients.statistics(z)[1], reduce):
        first, second = run(), run()
        assert torch.equal(first, second) and counters._pools and nonzero_counters() == 0
    torch.testing.assert_close(gradients.statistics(z)[0], z.mean((0, 2, 3)))


@on_gpu
def test_concurrent_graphs_and_calls(tmp_path):
    """Two graphs of a convolution and calls of it on three streams give equal results; no graph node is a memset."""
    path = PATHS["splits"]
    call = path.call(torch.float16, "NHWC")
    run = lambda: conv.conv_epilogue(*call, memory_format=torch.channels_last, config=path.config)  # noqa: E731
    expected, graphs, outputs, streams = run(), [], [], [torch.cuda.Stream() for _ in range(3)]
    for number in range(2):
        graph = torch.cuda.CUDAGraph()
        graph.enable_debug_mode()
        with torch.cuda.graph(graph):
            outputs.append(run())
        graph.debug_dump(str(tmp_path / f"{number}.dot"))
        graphs.append(graph)
    assert "MEMSET" not in (tmp_path / "0.dot").read_text()
    replays = [lambda graph=graph, y=y: graph.replay() or y for graph, y in zip(graphs, outputs)]
    differing = torch.zeros(3, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    for _ in range(50):
        for stream, once, count in zip(streams, (*replays, run), differing):
            with torch.cuda.stream(stream):
                count += (once() != expected).sum()
    torch.cuda.synchronize()
    assert differing.tolist() == [0, 0, 0] and nonzero_counters() == 0


def test_under_the_interpreter(capsys):
    interpret(__file__, capsys=capsys, least=5, only="not interpreter")
