"""Measure one fused layer of ResNet34 in turns: every backend, plain eager and cuDNN's convolution alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import atrous
from atrous import testing, tuning
from atrous.backends import selection
from atrous.core import checks
from atrous.tools.timing import copies
from bench.tables.layers import FusedLayer
from bench.tables.measures import NHWC, dtype_name, ends, heuristic, medians, replayed

BACKENDS = tuple(selection.backends())  # native is left out if it is not built for the GPU
CALLS = 10  # in a CUDA graph at least, so that the launch of the graph is negligible
Arguments = dict[str, Any]  # keyword arguments of conv_bn_act
Conv = Callable[[Arguments], Tensor]


def case(layer: FusedLayer, batch: int) -> testing.Case:
    return testing.Case(
        str(layer), (batch, layer.in_channels, layer.size, layer.size), layer.out_channels, (layer.kernel,) * 2,
        *layer.geometry, slope="channel" if layer.act else 1.0, residual="before" if layer.residual else None,
    )  # fmt: skip


def check(arguments: Arguments, backends: tuple[str, ...]) -> None:
    """Compares each backend with fp64 on the first and last images. Raises AssertionError with the backend's name."""
    outputs = {backend: ends(atrous.conv_bn_act(**arguments, backend=backend)) for backend in backends}
    end_images = {name: ends(value) if name in ("input", "residual") else value for name, value in arguments.items()}
    with heuristic():
        for backend, y in outputs.items():
            try:
                testing.assert_close(y, end_images)
            except AssertionError as error:
                raise AssertionError(f"{backend}: {error}") from None


def variants(layer: FusedLayer, backends: tuple[str, ...]) -> dict[str, Conv]:
    """The calls to time, by name; "convolution" is the library's convolution without an epilogue."""

    def ours(backend: str) -> Conv:
        return lambda arguments: atrous.conv_bn_act(**arguments, backend=backend)

    def convolution(arguments: Arguments) -> Tensor:
        return torch.conv2d(arguments["input"], arguments["weight"], None, *layer.geometry)

    return {**{backend: ours(backend) for backend in backends}, "eager": testing.eager, "convolution": convolution}


def timed(calls: dict[str, Conv], sets: list[Arguments], device: torch.device) -> dict[str, float]:
    """Milliseconds of one call. On a GPU each variant is one CUDA graph with a call on every set of tensors: a call
    from Python takes longer than most of these kernels, and no set is still in the L2 cache when its turn comes."""
    count = max(len(sets), CALLS if device.type == "cuda" else 1)

    def over(call: Conv) -> Callable[[], None]:
        def run() -> None:
            for arguments in itertools.islice(itertools.cycle(sets), count):
                call(arguments)

        return replayed(run, device)

    times = medians({name: over(call) for name, call in calls.items()}, device)
    return {name: ms / count for name, ms in times.items()}


def chosen(arguments: Arguments) -> dict[str, Any]:
    """auto: the backend that backend="auto" selects; tuned: True if a tuning table decides it; config: the config that
    a tuning table has for backend triton, possibly measured for the same shape at another dilation."""
    x, w, residual = arguments["input"], arguments["weight"], "residual" in arguments
    spec, _ = checks.convolution(x, w, None, *(arguments[name] for name in ("stride", "padding", "dilation", "groups")))
    config = tuning.measured_config(x, w, spec, residual)
    return {
        "auto": selection.choose("auto", x, w, spec, residual=residual).name,
        "tuned": tuning.measured(x, w, spec, residual) is not None,
        "config": config.describe() if config is not None else None,
    }


def lower_bound(layer: FusedLayer, batch: int, element_size: int, ceilings: dict[str, float]) -> float:
    """Lower bound in milliseconds: every multiply-add at the measured matmul ceiling, or input, weight, residual and
    output moved once each at the measured copy bandwidth, whichever takes longer."""
    maps = layer.in_channels * layer.size**2 + (2 if layer.residual else 1) * layer.out_channels * layer.out_size**2
    moved = element_size * (batch * maps + layer.out_channels * layer.in_channels * layer.kernel**2)
    return max(layer.flop(batch) / ceilings["matmul_tflops"] / 1e9, moved / ceilings["copy_gb_s"] / 1e6)


def measure(
    layer: FusedLayer, batch: int, dtype: torch.dtype, device: torch.device, ceilings: dict[str, float],
    backends: tuple[str, ...] = BACKENDS,
) -> dict[str, Any]:  # fmt: skip
    """One row of the table. Raises AssertionError before timing if a backend gives a wrong result."""
    with heuristic():
        sets = copies(lambda: testing.arguments(case(layer, batch), dtype, device, NHWC), device)
    if selection.reasons("native", sets[0]["input"]):
        backends = tuple(backend for backend in backends if backend != "native")
    check(sets[0], backends)
    ms = timed(variants(layer, backends), sets, device)
    tflops = {name: layer.flop(batch) / value / 1e9 for name, value in ms.items()}
    bound = lower_bound(layer, batch, dtype.itemsize, ceilings)
    return {
        "layer": layer.name, "count": layer.count, "in_channels": layer.in_channels, "out_channels": layer.out_channels,
        "kernel": layer.kernel, "stride": layer.stride, "size": layer.size, "dilation": layer.dilation,
        "act": layer.act, "residual": layer.residual, "batch": batch, "dtype": dtype_name(dtype), **chosen(sets[0]),
        "ms": ms, "tflops": tflops,
        "of_matmul": {name: value / ceilings["matmul_tflops"] for name, value in tflops.items()},
        "of_bound": {name: bound / value for name, value in ms.items() if name != "convolution"},
    }  # fmt: skip
