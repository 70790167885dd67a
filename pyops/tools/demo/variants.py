"""Build the demo's variants, each a way to run the same model, and count the operators that a call launches."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.torch_compat import TorchDispatchMode
from .. import timing
from ..explain.training_cost import under

NCHW, NHWC = torch.contiguous_format, torch.channels_last
LABELS = {  # in the order of the table; the keys are those of the JSON
    "eager": "eager NCHW",
    "eager_channels_last": "eager NHWC",
    "compile": "torch.compile",
    "compile_freezing": "  with freezing",
    "compile_max_autotune": "  with max-autotune",
    "atrous_frozen": "atrous frozen",
    "eager_cudagraph": "eager, CUDA graph",
    "compile_cudagraph": "compile, CUDA graph",
    "atrous_frozen_cudagraph": "atrous frozen, CUDA graph",
}
COMPILED: dict[str, dict[str, Any]] = {  # options of torch.compile, for the channels_last model
    "compile": {},
    "compile_freezing": {"options": {"freezing": True}},
    "compile_max_autotune": {"mode": "max-autotune-no-cudagraphs"},
    "compile_cudagraph": {"mode": "reduce-overhead"},
}
IDLE = ("aten::empty", "aten::as_strided_", "aten::_unsafe_view", "aten::promote_types")
CPU = ("eager", "eager_channels_last", "compile", "compile_freezing", "atrous_frozen")


class Models(NamedTuple):
    """One model in one dtype: unchanged, in channels_last, and frozen by fuse()."""

    plain: nn.Module
    nhwc: nn.Module
    frozen: nn.Module


def build(model: nn.Module, dtype: torch.dtype, device: torch.device, fuse: Callable[..., nn.Module]) -> Models:
    plain = copy.deepcopy(model).to(device, dtype)
    return Models(plain, _channels_last(copy.deepcopy(plain)), fuse(plain, freeze=True))


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=NHWC)  # type: ignore[call-overload]  # missing in torch's annotations


def names(device: torch.device, batch: int) -> tuple[str, ...]:
    """The variants of a batch size. CUDA graphs are for batch 1: beyond it the kernels hide the launch gaps."""
    if device.type != "cuda":
        return CPU
    return tuple(name for name in LABELS if batch == 1 or not name.endswith("cudagraph"))


def ready(name: str, models: Models, images: Tensor) -> Callable[[], Tensor]:
    """A variant as a call without arguments: on these images, in the variant's layout."""
    base, _, graph = name.partition("_cudagraph")
    uncompiled = {"eager": models.plain, "eager_channels_last": models.nhwc, "atrous_frozen": models.frozen}
    x = images.to(next(models.plain.parameters()).dtype, memory_format=NCHW if base == "eager" else NHWC, copy=True)
    if base in uncompiled:
        run: Callable[[Tensor], Tensor] = uncompiled[base]
        return _captured(run, x) if graph else lambda: run(x)
    # fullgraph: a variant that is not compiled as a whole is an error and not a slow result.
    run = torch.compile(models.nhwc, fullgraph=True, dynamic=False, **COMPILED[name])
    return lambda: run(x)


def _captured(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # choices and allocations of first use happen before the capture
            run(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(x)

    def replay() -> Tensor:
        graph.replay()
        return y

    return replay


def measured(eager: Sequence[float], times: Sequence[float]) -> dict[str, Any]:
    """The figures of one variant for JSON, from the milliseconds of eager and its own in interleaved rounds."""
    ratio = timing.ratio(eager, times)
    return {
        "median_ms": statistics.median(times),
        "speedup_vs_eager": ratio.median,
        "spread": ratio.spread,
        "counted": ratio.counted,
        "repeats": len(times),
    }


class _Launches(TorchDispatchMode):
    """Counts the operators that compute: not views, and not those that only allocate or inspect."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or func.name().startswith(IDLE))
        return func(*args, **(kwargs or {}))


def launches(call: Callable[..., Any], *args: Any) -> int:
    """The number of operators that a call of a function or model launches, once a first call has prepared it."""
    call(*args)
    counter = _Launches()
    under(counter, call, *args)
    return counter.count
