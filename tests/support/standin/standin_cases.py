"""Every launcher of the Triton backend, in every config, as launches that the stand-in takes on any chip."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import conv_gate
import torch
from conv_gate import DEPTHWISE, LAYERS, Layer

from atrous.triton_kernels.conv import configs, problem, statistics
from atrous.triton_kernels.conv import forward as conv
from atrous.triton_kernels.conv.configs import Conv
from atrous.triton_kernels.pointwise import backward as gradients
from atrous.triton_kernels.pointwise import forward as pointwise
from atrous.triton_kernels.pointwise import operands

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ENDINGS = tuple(itertools.product(("relu", "number", "tensor", "random"), ("none", "before", "after")))
MAPS = {"last": (2, 64, 14, 14), "planes": (2, 64, 16, 16), "flat": (2, 64, 7, 7)}
PRIMITIVES = ("epilogue", "statistics", "reduce", "backward")


class Case(NamedTuple):
    """launch(batch): one call of a launcher, on the device of the stand-in. codes(batches): how many different codes
    those batches take: a descriptor's box is part of the code, and nothing else that changes from call to call is."""

    label: str
    launch: Callable[[int], object]
    codes: Callable[[tuple[int, ...]], int] = lambda batches: 1


def vectors(channels: int) -> list[torch.Tensor]:
    return [torch.empty(channels, device="cuda") for _ in range(4)]


def ending(channels: int, slope_kind: str, residual: str, like: torch.Tensor) -> tuple:
    """What follows the geometry in a call of an epilogue."""
    added = None if residual == "none" else torch.empty_like(like)
    seed = torch.empty(2, dtype=torch.int64, device="cuda")
    slope = torch.empty(channels, device="cuda")
    return (*vectors(channels), 1e-5, slope_kind, 0.1, 0.3, slope, seed, added, residual == "after")


def tensors(layer: Layer, batch: int, dtype: torch.dtype):
    (x, memory_format), w, out, geometry = conv_gate._tensors(layer._replace(batch=batch), dtype)
    return x, w, geometry, torch.empty(out, dtype=dtype, device="cuda", memory_format=memory_format)


def convolve(layer: Layer, config: Conv | None, dtype: torch.dtype, slope_kind: str, residual: str, batch: int):
    x, w, geometry, y = tensors(layer, batch, dtype)
    arguments = ending(layer.out_channels, slope_kind, residual, y)
    return conv.conv_epilogue(x, w, None, *geometry, *arguments, memory_format=layer.memory_format, config=config)


def convolve_for_training(layer: Layer, config: Conv | None, dtype: torch.dtype, batch: int):
    x, w, geometry, _ = tensors(layer, batch, dtype)
    return statistics.conv_statistics(x, w, None, *geometry, memory_format=layer.memory_format, config=config)


def boxes(layer: Layer, config: Conv, dtype: torch.dtype, batches: tuple[int, ...]) -> int:
    if not config.descriptors:
        return 1
    made = [tensors(layer, batch, dtype) for batch in batches]
    keys = [problem.conv_key(x, w, *geometry, layer.memory_format) for x, w, geometry, _ in made]
    return len({configs.box(key, config.block_n) for key in keys})


def convolutions(name: str) -> Iterator[Case]:
    """A layer in every tile, whole, persistent and with splits; dtype, slope and residual take turns."""
    layer = (LAYERS | DEPTHWISE)[name]
    layout = "last" if layer.memory_format == torch.channels_last else "planes"
    tiles = configs.DEPTHWISE[layout] if name in DEPTHWISE else configs.CONV
    forms = [tile._replace(**change) for change in ({}, {"waves": 2}, {"splits": 2}) for tile in tiles]
    for turn, (config, dtype) in enumerate(itertools.product(forms, DTYPES)):
        slope_kind, residual = ENDINGS[(turn + turn // len(ENDINGS)) % len(ENDINGS)]
        label = f"{name} {config.describe()} {dtype}"
        codes = partial(boxes, layer, config, dtype)
        launch = partial(convolve, layer, config, dtype, slope_kind, residual)
        yield Case(f"{label} {slope_kind} {residual}", launch, codes)
        if config.splits == 1:
            yield Case(f"{label} statistics", partial(convolve_for_training, layer, config, dtype), codes)


def primitive(name: str, layout: str, dtype: torch.dtype, slope_kind: str, residual: str, dropout: float, batch: int):
    memory_format = torch.channels_last if layout == "last" else torch.contiguous_format
    size = (batch, *MAPS[layout][1:])
    z, grad = (torch.empty(size, dtype=dtype, device="cuda", memory_format=memory_format) for _ in range(2))
    arguments = (*ending(size[1], slope_kind, residual, z), dropout)
    if name == "epilogue":
        return pointwise.epilogue(z, *arguments)
    if name == "statistics":
        return gradients.statistics(z)
    if name == "reduce":
        return gradients.epilogue_reduce(grad, z, *arguments)
    means = torch.empty(3, size[1], dtype=operands.accumulator(z), device="cuda")
    return gradients.epilogue_backward(grad, z, means, True, residual != "none", *arguments)


def primitives(name: str) -> Iterator[Case]:
    """A pass without a convolution over every layout and dtype; slope and residual take turns, and so does dropout."""
    for turn, (layout, dtype) in enumerate(itertools.product(MAPS, operands.DTYPES)):
        for slope_kind, residual in ENDINGS[turn % 4 :: 4] if name != "statistics" else ENDINGS[:1]:
            dropout = 0.3 * (turn % 2)
            label = f"{name} {layout} {dtype} {slope_kind} {residual} {dropout}"
            yield Case(label, partial(primitive, name, layout, dtype, slope_kind, residual, dropout))


GROUPS: dict[str, Callable[[str], Iterator[Case]]] = {
    **dict.fromkeys((*LAYERS, *DEPTHWISE), convolutions), **dict.fromkeys(PRIMITIVES, primitives),
}  # fmt: skip
