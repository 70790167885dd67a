"""Measurements for the tables, one row each. Every function takes the device, so that tests can run them on a CPU."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from atrous import models
from atrous.tools import timing
from atrous.tools.timing import copies
from bench.tables.layers import Layer

NHWC = torch.channels_last
PASSES = {"forward": None, "dgrad": [True, False, False], "wgrad": [False, True, False]}
T = TypeVar("T")
Set = TypeVar("Set", tuple, dict)


def rotated(make: Callable[[], Set], device: torch.device) -> Iterator[Set]:
    return itertools.cycle(copies(make, device))


def ends(x: Tensor, images: int = 4) -> Tensor:
    """The first and last images of a batch: enough to detect a wrong result, and quick to recompute in fp64."""
    return x if len(x) <= 2 * images else torch.cat([x[:images], x[-images:]])


@contextlib.contextmanager
def heuristic() -> Iterator[None]:
    """Disables cuDNN's algorithm search, for calls that are not timed."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def replayed(run: Callable[[], T], device: torch.device) -> Callable[[], T]:
    """Captures run in a CUDA graph and returns its replay; on a CPU, returns run itself."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # compile, choose algorithms and allocate before the capture
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> T:
        graph.replay()
        return result

    return replay


def medians(calls: Mapping[str, timing.Call], device: torch.device, seconds: float = 0.3) -> dict[str, float]:
    """Median milliseconds of each call, measured in turns. One measurement repeats a call for about 5 ms, so that
    launch overhead is negligible."""
    for call in calls.values():
        call()  # cuDNN chooses its algorithm, torch.compile compiles
    fastest = min(timing.milliseconds(call, device) for call in calls.values())
    count = max(1, int(5 / max(fastest, 1e-3)))
    return timing.medians(timing.interleaved(calls, device, seconds, least=5, most=50, warmup=2, calls=count))


def median(call: timing.Call, device: torch.device, seconds: float = 0.3) -> float:
    return medians({"": call}, device, seconds)[""]


def convolution(layer: Layer, direction: str, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """One row of the cuDNN table: a convolution in one direction (forward, dgrad or wgrad)."""

    def make() -> tuple[Tensor, ...]:
        sizes = (
            (batch, layer.in_channels, layer.size, layer.size),
            (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel),
            (batch, layer.out_channels, layer.out_size, layer.out_size),
        )
        return tuple(torch.randn(size, device=device).to(dtype, memory_format=NHWC) for size in sizes)

    tensors, mask = rotated(make, device), PASSES[direction]

    def call() -> object:
        x, w, dz = next(tensors)
        if mask is None:
            return torch.conv2d(x, w, None, *layer.geometry)
        return torch.ops.aten.convolution_backward(dz, x, w, None, *layer.geometry, False, [0, 0], 1, mask)

    ms = median(call, device)
    return {
        "layer": layer.name, "count": layer.count, "dilation": layer.dilation, "pass": direction, "batch": batch,
        "dtype": dtype_name(dtype), "ms": ms, "tflops": layer.flop(batch) / ms / 1e9,
    }  # fmt: skip


def network(
    variant: str, training: bool, batch: int, device: torch.device, size: int = 224, dtype=torch.bfloat16
) -> dict[str, Any]:
    """Images per second of ResNet34 with channel-wise PReLU in one dtype. Training uses SGD with momentum."""
    layout = torch.contiguous_format if variant == "eager" else NHWC
    model = models.resnet34(act="prelu").to(device, dtype).to(memory_format=layout).train(training)
    run = torch.compile(model, dynamic=False, fullgraph=True) if variant == "compile" else model
    images = rotated(
        lambda: (torch.randn(batch, 3, size, size, device=device).to(dtype, memory_format=layout),), device
    )
    labels = torch.randint(1000, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def infer() -> object:
        with torch.no_grad():
            return run(*next(images))

    def train() -> object:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(run(*next(images)), labels).backward()
        return optimizer.step()

    ms = median(train if training else infer, device, 3.0)
    mode = "training" if training else "inference"
    return {
        "variant": variant, "mode": mode, "batch": batch, "dtype": dtype_name(dtype), "ms": ms,
        "images_s": batch / ms * 1e3,
    }  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
