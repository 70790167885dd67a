"""The counters of launches: zero after each, apart for streams and captured graphs, filled when there are none left."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from triton_cases import DEVICE, PATHS, interpret, on_card, on_device

from atrous.triton_kernels import conv, counters, gradients

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu():
    """Makes this machine look as if it had a GPU: `capturing` and `stream` are its state."""
    state = SimpleNamespace(capturing=False, stream=0)
    with (
        mock.patch.object(counters, "_devices", {}),
        mock.patch.object(counters, "_allocate", lambda device: torch.zeros(1024, dtype=torch.int32)),
        mock.patch.object(torch.cuda, "device", lambda device: contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: state.capturing),
        mock.patch.object(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=state.stream)),
    ):
        yield state


def span(tensor: torch.Tensor) -> set[int]:
    return set(range(tensor.data_ptr(), tensor.data_ptr() + 4 * tensor.numel()))


def test_the_launches_of_a_stream_share_and_two_streams_do_not(gpu):
    first = counters.counters(GPU, 100)
    assert span(counters.counters(GPU, 60)) == span(first) and first.numel() >= 100
    gpu.stream = 7
    assert not span(counters.counters(GPU, 100)) & span(first)


def test_a_stream_that_needs_more_gets_another_part(gpu):
    first = counters.counters(GPU, 1)
    second = counters.counters(GPU, first.numel() + 1)
    assert second.numel() > first.numel() and not span(second) & span(first)


def test_every_captured_launch_has_a_part_of_its_own(gpu):
    parts = [counters.counters(GPU, 33)]
    gpu.capturing = True
    parts += [counters.counters(GPU, 33) for _ in range(4)]
    gpu.capturing = False
    parts += [counters.counters(GPU, 33)]
    assert span(parts[0]) == span(parts[-1])
    assert len(set.union(*map(span, parts[:-1]))) == sum(len(span(part)) for part in parts[:-1])
    assert all(part.data_ptr() % 128 == parts[0].data_ptr() % 128 for part in parts)


def test_used_up_or_never_made_the_launch_fills_its_own(gpu):
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


def left() -> int:
    """Counters that a launch has not set back."""
    return sum(int(zeros.array.count_nonzero()) for zeros in counters._devices.values())


@on_device
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_every_kind_of_launch_leaves_zeros(layout):
    """Splits, statistics and both reductions, twice: the second finds what the first left."""
    path = PATHS["splits"]
    call = path.call(torch.float32, layout)
    format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    convolve = lambda: conv.conv_epilogue(*call, memory_format=format, config=path.config)  # noqa: E731
    z = torch.randn(2, 5, 9, 7, device=DEVICE).contiguous(memory_format=format)
    end = *[None] * 4, 1e-5, "relu", 0.0, 0.0, None, None, None, False
    reduce = lambda: gradients.epilogue_reduce(z, z, *end)  # noqa: E731
    for run in (convolve, lambda: gradients.statistics(z)[1], reduce):
        first, second = run(), run()
        assert torch.equal(first, second) and counters._devices and left() == 0
    torch.testing.assert_close(gradients.statistics(z)[0], z.mean((0, 2, 3)))


@on_card
def test_graphs_and_calls_at_once(tmp_path):
    """Two graphs of one convolution beside calls of it, each on a stream: all results are equal, no node is a fill."""
    path = PATHS["splits"]
    call = path.call(torch.float16, "NHWC")
    run = lambda: conv.conv_epilogue(*call, memory_format=torch.channels_last, config=path.config)  # noqa: E731
    expected, graphs, found, streams = run(), [], [], [torch.cuda.Stream() for _ in range(3)]
    for number in range(2):
        graph = torch.cuda.CUDAGraph()
        graph.enable_debug_mode()
        with torch.cuda.graph(graph):
            found.append(run())
        graph.debug_dump(str(tmp_path / f"{number}.dot"))
        graphs.append(graph)
    assert "MEMSET" not in (tmp_path / "0.dot").read_text()
    replays = [lambda graph=graph, y=y: graph.replay() or y for graph, y in zip(graphs, found)]
    differing = torch.zeros(3, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    for _ in range(50):
        for stream, once, count in zip(streams, (*replays, run), differing):
            with torch.cuda.stream(stream):
                count += (once() != expected).sum()
    torch.cuda.synchronize()
    assert differing.tolist() == [0, 0, 0] and left() == 0


def test_under_the_interpreter(capsys):
    interpret(__file__, capsys=capsys, least=5, only="not interpreter")
