"""Prints the resident memory of a process behind the first calls of one kind and behind many, of changing shapes.

python tests/support/processes/growth.py functional float32 1000 10000
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from thread_cases import NHWC, Net, Tensors, net
from torch import Tensor, nn

import atrous
from atrous.nn import FrozenConv2d

CHANNELS, PIXELS = 32, 900  # a 3x3 convolution is Winograd's on some of these maps and the library's on others
DISTINCT = 500  # shapes: oneDNN, and so torch itself, takes memory for each of the first thousands


def shapes(count: int) -> Iterator[tuple[int, int, int]]:
    """Batch, height and width: DISTINCT of them, in another order each time."""
    sides, draw = range(2, PIXELS), random.Random(0)
    every = [(batch, height, width) for batch in range(1, 9) for height in sides for width in sides[: PIXELS // height]]
    chosen = draw.sample([shape for shape in every if math.prod(shape) <= PIXELS], DISTINCT)
    for _ in range(0, count, DISTINCT):
        draw.shuffle(chosen)
        yield from chosen


def functional(draw: Tensors) -> Callable[[Tensor], object]:
    weight, norm = draw(CHANNELS, CHANNELS, 3, 3, layout=NHWC) / 24, draw.norm(CHANNELS)

    def call(x):
        with torch.no_grad():
            y = atrous.conv_bn_act(x, weight, None, *norm, slope=0.1, padding=1)
            return atrous.add_act(atrous.bn_act(y, *norm, slope="relu"), x, slope=0.2)

    return call


def gradients(draw: Tensors) -> Callable[[Tensor], object]:
    weight = draw(CHANNELS, CHANNELS, 3, 3, layout=NHWC) / 24
    gamma, beta = draw(CHANNELS).float(), draw(CHANNELS).float()
    optimizer = torch.optim.SGD([nn.Parameter(tensor) for tensor in (weight, gamma, beta)], lr=1e-3)
    weight, gamma, beta = optimizer.param_groups[0]["params"]
    running = torch.zeros(CHANNELS), torch.ones(CHANNELS)

    def call(x):
        optimizer.zero_grad()
        y = atrous.conv_bn_act(x, weight, None, *running, gamma, beta, slope=0.1, padding=1, training=True)
        y.square().mean().backward()
        optimizer.step()

    return call


def frozen(draw: Tensors) -> Callable[[Tensor], object]:
    layer = FrozenConv2d(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)).to(draw.dtype)
    return without_gradients(lambda x: layer(x, x, 0.1))


def without_gradients(model: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    def call(x):
        with torch.no_grad():
            return model(x)

    return call


def fused(draw: Tensors) -> Callable[[Tensor], object]:
    model = atrous.fuse(net(draw))
    return without_gradients(lambda x: model(x[:, :4]))


def fused_frozen(draw: Tensors) -> Callable[[Tensor], object]:
    model = atrous.fuse(net(draw), freeze=True)
    return without_gradients(lambda x: model(x[:, :4]))


def fused_training(draw: Tensors) -> Callable[[Tensor], object]:
    model = atrous.fuse(Net().to(draw.dtype, memory_format=NHWC).train())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def call(x):
        optimizer.zero_grad()
        model(x[:, :4]).square().mean().backward()
        optimizer.step()

    return call


def plain(draw: Tensors) -> Callable[[Tensor], object]:
    """torch alone, to compare with."""
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).to(draw.dtype, memory_format=NHWC)
    return without_gradients(lambda x: conv(x))


def leaking(draw: Tensors) -> Callable[[Tensor], object]:
    """A fault that a measurement has to find: 1 kB a call."""
    kept = []
    return lambda x: kept.append(bytearray(1024))


def resident() -> int:
    """Bytes of this process, without what malloc could give back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


KINDS = {
    function.__name__: function
    for function in (functional, gradients, frozen, fused, fused_frozen, fused_training, plain, leaking)
}


def measure(kind: str, dtype: torch.dtype, first: int, last: int) -> list[int]:
    """The resident memory behind `first` calls and behind `last`."""
    torch.manual_seed(0)
    call, sizes = KINDS[kind](Tensors(dtype)), []
    for number, (batch, height, width) in enumerate(shapes(last), 1):
        call(torch.ones(batch, CHANNELS, height, width, dtype=dtype).contiguous(memory_format=NHWC))
        if number in (first, last):
            sizes.append(resident())
    return sizes


if __name__ == "__main__":
    kind, dtype, first, last = sys.argv[1:]
    print(json.dumps(measure(kind, getattr(torch, dtype), int(first), int(last))))
