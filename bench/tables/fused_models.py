"""Measure whole networks in inference, in turns: plain, compiled, and fused and frozen."""

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

BUDGET = 2.0  # allowed multiple of eager's error against fp64
SECONDS, FRACTION = 6.0, 0.1  # to time all variants of a network at the end, of what is left of the part
UNKNOWN = "unknown"  # how many convolutions are tuned, until a network is measured
LABELS = {  # in the order of measurement: the longest compilation comes last
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
BATCH_1 = ("compile_cudagraph", "atrous_compile_cudagraph")  # max-autotune and atrous use CUDA graphs at any batch
SLOW = "compile_max_autotune"  # 1 to 4 minutes per network
# A network's variants are in three rows: first every network without compilation, then those with.
PLAIN = ("eager_channels_last", "atrous", "atrous_cudagraph")
BESIDE_SLOW = (*PLAIN, SLOW)
COMPILE_SECONDS, MAX_AUTOTUNE_SECONDS = 20.0, 240.0  # that torch.compile may take
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """A benchmark setting: ResNet34 with channel-wise PReLU on `batch` images of size x size."""

    batch: int
    size: int = 224
    output_stride: int = 32

    def __str__(self) -> str:
        return f"resnet34, output stride {self.output_stride}, {self.size}x{self.size}, batch {self.batch}"


# Most goals depend on the first ones. The quickest is before them: a part with little time has one in any case.
NETWORKS = (Network(1), Network(256), Network(32), Network(8, 512, 8), Network(1, 512, 8))


@functools.cache
def weights() -> dict[str, Tensor]:
    """Weights that keep the activations in range; they fit every output stride, since dilation has no parameters."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return demo_images.random_model(images).state_dict()


def model(output_stride: int) -> nn.Module:
    network = models.resnet34(act="prelu", output_stride=output_stride).eval()
    network.load_state_dict(weights())
    return network


def compiled(batch: int) -> tuple[str, ...]:
    """Variants of the part "compiled": eager, and torch.compile's modes except the slowest."""
    return PLAIN[0], *(
        name for name in LABELS if name in COMPILED and name != SLOW and (batch == 1 or name not in BATCH_1)
    )


def graphed(run: Run, x: Tensor) -> Run:
    """Captures run in a CUDA graph; each call copies its images into the graph's input, as torch.compile does."""
    static_input = x.clone()
    replay = replayed(lambda: run(static_input), x.device)

    def call(images: Tensor) -> Tensor:
        static_input.copy_(images)
        return replay()

    return call


def ready(name: str, nhwc: nn.Module, fused: nn.Module, x: Tensor) -> Run:
    subject = fused if name.startswith("atrous") else nhwc
    if name in COMPILED:  # fullgraph: a graph break is reported as missing, not timed
        return torch.compile(subject, fullgraph=True, dynamic=False, **COMPILED[name])
    return graphed(subject, x) if name.endswith("_cudagraph") else subject


def prepared(name: str, nhwc: nn.Module, fused: nn.Module, x: Tensor, exact: Tensor, allowed: float) -> Run:
    """A variant, compiled and warmed up. Raises WrongResult if its error against fp64 exceeds `allowed`."""
    run = ready(name, nhwc, fused, x)
    for _ in range(3):  # torch.compile's graphs warm up, record, and replay from the third call on
        y = run(x)
    error = testing.largest_error(ends(y), exact)
    if error > allowed:
        raise WrongResult(f"disagrees with fp64 by {error:.3g}, allowed {allowed:.3g}")
    return run


class WrongResult(Exception):
    """A variant's error against fp64 is too large; the text says by how much."""

    def __str__(self) -> str:
        return str(self.args[0])


def tuned(fused: nn.Module, size: tuple[int, ...], backend: str, target: Target) -> str:
    """The number of convolutions whose backend a tuning table decides, as "24 of 36"."""
    choices = explain(fused, size, backend, target).choices
    return f"{sum(choice.tuned for choice in choices)} of {len(choices)}"


@torch.no_grad()
def measure(
    network: Network, dtype: torch.dtype, device: torch.device, backend: str = "auto", seconds: float = SECONDS,
    variants: tuple[str, ...] = PLAIN,
) -> tables.GrowingRow:  # fmt: skip
    """Yields one row before each variant, with the times and images per second of the variants so far.

    A new variant is timed in turns with eager; the final numbers come from all variants in turns. backend: for the
    atrous variants. Raises GpuLost.
    """
    size = (network.batch, 3, network.size, network.size)
    images = copies(lambda: (torch.randn(size, device=device).to(dtype, memory_format=NHWC),), device)
    plain, (x,) = model(network.output_stride).to(device), images[0]
    with heuristic():
        exact = copy.deepcopy(plain).double()(ends(x).double())
    nhwc = plain.to(dtype).to(memory_format=NHWC)  # type: ignore[call-overload]
    fused = fusion.fuse(nhwc, backend=backend, freeze=True)
    allowed = testing.tensor_budget(ends(nhwc(x)), exact, ratio=BUDGET, relative=0)
    turns = itertools.cycle(images)
    calls: dict[str, Callable[[], Tensor]] = {}
    row: dict[str, Any] = {
        "size": network.size, "output_stride": network.output_stride, "batch": network.batch,
        "dtype": dtype_name(dtype), "tuned": UNKNOWN,
        "ms": {}, "missing": {}, "images_s": {},
    }  # fmt: skip

    def time(names: Iterable[str], *budget: float) -> None:
        row["ms"].update(medians({name: calls[name] for name in names}, device, *budget))
        row["images_s"].update({name: network.batch / ms * 1e3 for name, ms in row["ms"].items()})

    for name in variants:
        left = yield row
        needed = MAX_AUTOTUNE_SECONDS if name == SLOW else COMPILE_SECONDS
        if name in COMPILED and (reason := tables.too_long(needed, left)):
            row["missing"][name] = reason
            continue
        try:
            run = prepared(name, nhwc, fused, x, exact, allowed)
            calls[name] = functools.partial(lambda run: run(*next(turns)), run)
            time({next(iter(calls)), name})
        except Exception as failure:
            calls.pop(name, None)
            message = str(failure) if isinstance(failure, WrongResult) else f"{type(failure).__name__}: {failure}"
            row["missing"][name] = message.strip().splitlines()[0]
            testing.raise_if_lost(f"{name}: {row['missing'][name]}", failure)
    left = yield row
    time(calls, seconds if left is None else min(seconds, FRACTION * left))
    row["tuned"] = tuned(fused, size, backend, Target(device, dtype, NHWC))  # last: it takes 3 s
