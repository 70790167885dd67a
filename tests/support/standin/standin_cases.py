"""Launches of every Triton launcher in every config, for the stand-in on any chip."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import conv_gate
import torch
from conv_gate import DEPTHWISE, LAYERS, Layer

from atrous.core.spec import Epilogue
from atrous.triton_kernels.conv import configs, problem, statistics
from atrous.triton_kernels.conv import forward as conv
from atrous.triton_kernels.conv.configs import Conv
from atrous.triton_kernels.pointwise import backward as gradients
from atrous.triton_kernels.pointwise import forward as pointwise
from atrous.triton_kernels.pointwise import operands

EPILOGUES = tuple(itertools.product(("relu", "number", "tensor", "random"), ("none", "before", "after")))
SIZES = {"nhwc": (2, 64, 14, 14), "nchw": (2, 64, 16, 16), "nchw_flat": (2, 64, 7, 7)}
PRIMITIVES = ("epilogue", "statistics", "reduce", "backward")


class Case(NamedTuple):
    """launch(batch): one call of a launcher on the stand-in's device. kernels(batches): the number of compiled kernels
    that these batches need: code depends on a descriptor's box and on nothing else that changes between calls."""

    label: str
    launch: Callable[[int], object]
    kernels: Callable[[tuple[int, ...]], int] = lambda batches: 1


def epilogue(slope_kind: str, residual: str, like: torch.Tensor, dropout: float = 0.0) -> Epilogue:
    addend = None if residual == "none" else torch.empty_like(like)
    seed = torch.empty(2, dtype=torch.int64, device="cuda")
    *bn, slope = (torch.empty(like.shape[1], device="cuda") for _ in range(5))
    return Epilogue(*bn, slope, addend, slope_kind, 1e-5, 0.1, 0.3, residual == "after", seed, dropout)


def tensors(layer: Layer, batch: int, dtype: torch.dtype):
    (x, memory_format), w, out, spec = conv_gate._tensors(layer._replace(batch=batch), dtype)
    return x, w, spec, torch.empty(out, dtype=dtype, device="cuda", memory_format=memory_format)


def convolve(layer: Layer, config: Conv | None, dtype: torch.dtype, slope_kind: str, residual: str, batch: int):
    x, w, spec, y = tensors(layer, batch, dtype)
    e = epilogue(slope_kind, residual, y)
    return conv.conv_epilogue(x, w, None, spec, e, memory_format=layer.memory_format, config=config)


def convolve_for_training(layer: Layer, config: Conv | None, dtype: torch.dtype, batch: int):
    x, w, spec, _ = tensors(layer, batch, dtype)
    return statistics.conv_statistics(x, w, None, spec, memory_format=layer.memory_format, config=config)


def count_boxes(layer: Layer, config: Conv, dtype: torch.dtype, batches: tuple[int, ...]) -> int:
    """The number of different descriptor boxes of a layer at these batches."""
    if not config.descriptors:
        return 1
    calls = [tensors(layer, batch, dtype) for batch in batches]
    keys = [problem.conv_key(x, w, spec, layer.memory_format) for x, w, spec, _ in calls]
    return len({configs.box(key, config.block_n) for key in keys})


def convolutions(name: str) -> Iterator[Case]:
    """A layer in every config, per-tile, persistent and with splits; dtype, slope and residual rotate."""
    layer = (LAYERS | DEPTHWISE)[name]
    layout = "nhwc" if layer.memory_format == torch.channels_last else "nchw"
    tiles = configs.DEPTHWISE[layout] if name in DEPTHWISE else configs.CONV
    forms = [tile._replace(**change) for change in ({}, {"waves": 2}, {"splits": 2}) for tile in tiles]
    for turn, (config, dtype) in enumerate(itertools.product(forms, configs.DTYPES)):
        slope_kind, residual = EPILOGUES[(turn + turn // len(EPILOGUES)) % len(EPILOGUES)]
        label = f"{name} {config.describe()} {dtype}"
        kernels = partial(count_boxes, layer, config, dtype)
        launch = partial(convolve, layer, config, dtype, slope_kind, residual)
        yield Case(f"{label} {slope_kind} {residual}", launch, kernels)
        if config.splits == 1:
            yield Case(f"{label} statistics", partial(convolve_for_training, layer, config, dtype), kernels)


def primitive(name: str, layout: str, dtype: torch.dtype, slope_kind: str, residual: str, dropout: float, batch: int):
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    size = (batch, *SIZES[layout][1:])
    z, grad = (torch.empty(size, dtype=dtype, device="cuda", memory_format=memory_format) for _ in range(2))
    e = epilogue(slope_kind, residual, z, dropout)
    if name == "epilogue":
        return pointwise.epilogue(z, e)
    if name == "statistics":
        return gradients.statistics(z)
    if name == "reduce":
        return gradients.epilogue_reduce(grad, z, e)
    means = torch.empty(3, size[1], dtype=operands.accumulator(z), device="cuda")
    return gradients.epilogue_backward(grad, z, means, True, residual != "none", e)


def primitives(name: str) -> Iterator[Case]:
    """A pass without a convolution in every layout and dtype; slope, residual and dropout rotate."""
    for turn, (layout, dtype) in enumerate(itertools.product(SIZES, operands.DTYPES)):
        for slope_kind, residual in EPILOGUES[turn % 4 :: 4] if name != "statistics" else EPILOGUES[:1]:
            dropout = 0.3 * (turn % 2)
            label = f"{name} {layout} {dtype} {slope_kind} {residual} {dropout}"
            yield Case(label, partial(primitive, name, layout, dtype, slope_kind, residual, dropout))


GROUPS: dict[str, Callable[[str], Iterator[Case]]] = {
    **dict.fromkeys((*LAYERS, *DEPTHWISE), convolutions), **dict.fromkeys(PRIMITIVES, primitives),
}  # fmt: skip
