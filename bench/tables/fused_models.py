"""Whole networks in inference: plain, compiled, and fused and frozen, in turns."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atrous import fusion, models, testing
from atrous.tools.demo import images as demo_images
from atrous.tools.explain.explain import explain
from atrous.tools.explain.target import Target
from atrous.tools.timing import copies
from bench.tables import table as tables
from bench.tables.measures import NHWC, dtype_name, ends, heuristic, medians, replayed

BUDGET = 2.0  # of eager's own error against fp64
SECONDS = 6.0  # of timing a network
LABELS = {  # in the order of the table and of measuring: what compiles the longest comes last
    "eager_channels_last": "eager NHWC",
    "atrous": "atrous",
    "atrous_cudagraph": "atrous, CUDA graph",
    "compile": "torch.compile",
    "compile_cudagraph": "torch.compile, CUDA graph",
    "atrous_compile_cudagraph": "atrous in torch.compile, CUDA graph",
    "compile_max_autotune": "torch.compile, max-autotune (CUDA graph)",
}
COMPILED: dict[str, dict[str, Any]] = {
    "compile": {},
    "compile_cudagraph": {"mode": "reduce-overhead"},
    "compile_max_autotune": {"mode": "max-autotune"},
    "atrous_compile_cudagraph": {"mode": "reduce-overhead"},
}
BATCH_1 = ("compile_cudagraph", "atrous_compile_cudagraph")  # max-autotune has its graphs at any batch, and so have we
SLOW = "compile_max_autotune"  # 1 to 4 minutes a network
# The variants of a network in three rows: what compiles comes after all networks without.
PLAIN = ("eager_channels_last", "atrous", "atrous_cudagraph")
BESIDE_SLOW = (*PLAIN, SLOW)
COMPILING, COMPILING_SLOW = 30.0, 240.0  # seconds that torch.compile may take
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """ResNet34 with channel-wise PReLU on `batch` images of size x size."""

    batch: int
    size: int = 224
    output_stride: int = 32

    def __str__(self) -> str:
        return f"resnet34, output stride {self.output_stride}, {self.size}x{self.size}, batch {self.batch}"


# First what most goals hang on.
NETWORKS = (Network(256), Network(1), Network(32), Network(8, 512, 8), Network(1, 512, 8))


@functools.cache
def weights() -> dict[str, Tensor]:
    """Of a network whose activations keep a sane size; dilation has no parameters."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return demo_images.random_model(images).state_dict()


def model(output_stride: int) -> nn.Module:
    network = models.resnet34(act="prelu", output_stride=output_stride).eval()
    network.load_state_dict(weights())
    return network


def compiled(batch: int) -> tuple[str, ...]:
    """torch.compile's modes but the slowest, beside eager."""
    return PLAIN[0], *(
        name for name in LABELS if name in COMPILED and name != SLOW and (batch == 1 or name not in BATCH_1)
    )


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


def prepared(name: str, nhwc: nn.Module, fused: nn.Module, x: Tensor, exact: Tensor, allowed: float) -> Run:
    """A variant, warm and compiled. Raises Disagrees where its answer is not right."""
    run = ready(name, nhwc, fused, x)
    for _ in range(3):  # torch.compile's graphs warm up, record, and replay from the third call on
        y = run(x)
    error = testing.largest_error(ends(y), exact)
    if not error <= allowed:  # NaN too
        raise Disagrees(f"disagrees with fp64 by {error:.3g}, allowed {allowed:.3g}")
    return run


class Disagrees(Exception):
    """Its text says by how much."""

    def __str__(self) -> str:
        return str(self.args[0])


def tuned(fused: nn.Module, size: tuple[int, ...], backend: str, target: Target) -> str:
    """For how many of its convolutions a table of `python -m atrous tune` decides: "24 of 36"."""
    choices = explain(fused, size, backend, target).choices
    return f"{sum(choice.tuned for choice in choices)} of {len(choices)}"


@torch.no_grad()
def measure(
    network: Network, dtype: torch.dtype, device: torch.device, backend: str = "auto", seconds: float = SECONDS,
    variants: tuple[str, ...] = PLAIN,
) -> tables.Growing:  # fmt: skip
    """Yields one row of the table as it grows, before each variant: images a second of those that are done.

    A new variant is timed in turns with eager; the last numbers are of all variants in turns. backend: of our own.
    """
    size = (network.batch, 3, network.size, network.size)
    images = copies(lambda: (torch.randn(size, device=device).to(dtype, memory_format=NHWC),), device)
    plain, (x,) = model(network.output_stride).to(device), images[0]
    with heuristic():
        exact = copy.deepcopy(plain).double()(ends(x).double())
    nhwc = plain.to(dtype).to(memory_format=NHWC)  # type: ignore[call-overload]
    fused = fusion.fuse(nhwc, backend=backend, freeze=True)
    allowed = BUDGET * testing.largest_error(ends(nhwc(x)), exact)
    turns = itertools.cycle(images)
    calls: dict[str, Callable[[], Tensor]] = {}
    row: dict[str, Any] = {
        "size": network.size, "output_stride": network.output_stride, "batch": network.batch,
        "dtype": dtype_name(dtype), "tuned": tuned(fused, size, backend, Target(device, dtype, NHWC)),
        "ms": {}, "missing": {}, "images_s": {},
    }  # fmt: skip

    def time(names: Iterable[str], *budget: float) -> None:
        row["ms"].update(medians({name: calls[name] for name in names}, device, *budget))
        row["images_s"].update({name: network.batch / ms * 1e3 for name, ms in row["ms"].items()})

    for name in variants:
        left = yield row
        if name in COMPILED and (reason := tables.too_long(COMPILING_SLOW if name == SLOW else COMPILING, left)):
            row["missing"][name] = reason
            continue
        try:
            run = prepared(name, nhwc, fused, x, exact, allowed)
            calls[name] = functools.partial(lambda run: run(*next(turns)), run)
            time({next(iter(calls)), name})
        except Exception as failure:
            calls.pop(name, None)
            told = str(failure) if isinstance(failure, Disagrees) else f"{type(failure).__name__}: {failure}"
            row["missing"][name] = told.strip().splitlines()[0]
    left = yield row
    time(calls, seconds if left is None else min(seconds, left))
