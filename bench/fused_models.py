"""Whole networks in inference: plain, compiled, and fused and frozen, in turns."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measures import NHWC, dtype_name, ends, heuristic, medians, replayed
from torch import Tensor, nn

from atrous import demo_subject, fusion, models, testing
from atrous.timing import copies

BUDGET = 2.0  # of eager's own error against fp64
SECONDS = 6.0  # of timing a network
LABELS = {  # in the order of the table
    "eager_channels_last": "eager NHWC",
    "compile": "torch.compile",
    "compile_cudagraph": "torch.compile, CUDA graph",
    "compile_max_autotune": "torch.compile, max-autotune (CUDA graph)",
    "atrous": "atrous",
    "atrous_cudagraph": "atrous, CUDA graph",
    "atrous_compile_cudagraph": "atrous in torch.compile, CUDA graph",
}
COMPILED: dict[str, dict[str, Any]] = {
    "compile": {},
    "compile_cudagraph": {"mode": "reduce-overhead"},
    "compile_max_autotune": {"mode": "max-autotune"},
    "atrous_compile_cudagraph": {"mode": "reduce-overhead"},
}
BATCH_1 = ("compile_cudagraph", "atrous_compile_cudagraph")  # max-autotune has its graphs at any batch, and so have we
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """ResNet34 with channel-wise PReLU on `batch` images of size x size."""

    batch: int
    size: int = 224
    output_stride: int = 32

    def __str__(self) -> str:
        return f"resnet34, output stride {self.output_stride}, {self.size}x{self.size}, batch {self.batch}"


# max-autotune takes long: first what most goals hang on.
NETWORKS = (Network(256), Network(1), Network(32), Network(8, 512, 8), Network(1, 512, 8))


@functools.cache
def weights() -> dict[str, Tensor]:
    """Of a network whose activations keep a sane size; dilation has no parameters."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return demo_subject.random_model(images).state_dict()


def model(output_stride: int) -> nn.Module:
    network = models.resnet34(act="prelu", output_stride=output_stride).eval()
    network.load_state_dict(weights())
    return network


def names(batch: int) -> tuple[str, ...]:
    return tuple(name for name in LABELS if batch == 1 or name not in BATCH_1)


def graphed(run: Run, x: Tensor) -> Run:
    """run as a CUDA graph; each call copies its images to where the graph reads them, as torch.compile's graphs do."""
    held = x.clone()
    replay = replayed(lambda: run(held), x.device)

    def call(images: Tensor) -> Tensor:
        held.copy_(images)
        return replay()

    return call


def ready(name: str, nhwc: nn.Module, fused: nn.Module, x: Tensor) -> Run:
    subject = fused if name.startswith("atrous") else nhwc
    if name in COMPILED:  # fullgraph: a variant that is not compiled whole is a reason, and not a slow row
        return torch.compile(subject, fullgraph=True, dynamic=False, **COMPILED[name])
    return graphed(subject, x) if name.endswith("_cudagraph") else subject


def prepared(nhwc: nn.Module, fused: nn.Module, x: Tensor, exact: Tensor) -> tuple[dict[str, Run], dict[str, str]]:
    """The variants that answer right, by name, and why the others are missing."""
    runs: dict[str, Run] = {}
    missing: dict[str, str] = {}
    allowed = BUDGET * testing.largest_error(ends(nhwc(x)), exact)
    for name in names(len(x)):
        try:
            run = ready(name, nhwc, fused, x)
            for _ in range(3):  # torch.compile's graphs warm up, record, and replay from the third call on
                y = run(x)
            error = testing.largest_error(ends(y), exact)
        except Exception as failure:
            missing[name] = f"{type(failure).__name__}: {failure}".strip().splitlines()[0]
            continue
        if error <= allowed:  # False for NaN
            runs[name] = run
        else:
            missing[name] = f"disagrees with fp64 by {error:.3g}, allowed {allowed:.3g}"
    return runs, missing


@torch.no_grad()
def measure(
    network: Network, dtype: torch.dtype, device: torch.device, backend: str = "auto", seconds: float = SECONDS
) -> dict[str, Any]:
    """One row of the table: images a second of every variant. backend: of the fused sites."""
    size = (network.batch, 3, network.size, network.size)
    images = copies(lambda: (torch.randn(size, device=device).to(dtype, memory_format=NHWC),), device)
    plain, (x,) = model(network.output_stride).to(device), images[0]
    with heuristic():
        exact = copy.deepcopy(plain).double()(ends(x).double())
    nhwc = plain.to(dtype).to(memory_format=NHWC)  # type: ignore[call-overload]
    runs, missing = prepared(nhwc, fusion.fuse(nhwc, backend=backend, freeze=True), x, exact)
    turns = itertools.cycle(images)
    calls = {name: functools.partial(lambda run: run(*next(turns)), run) for name, run in runs.items()}
    ms = medians(calls, device, seconds)
    return {
        "size": network.size, "output_stride": network.output_stride, "batch": network.batch,
        "dtype": dtype_name(dtype), "ms": ms, "missing": missing,
        "images_s": {name: network.batch / value * 1e3 for name, value in ms.items()},
    }  # fmt: skip
