"""The register of the zoo, and small layers that many of its models are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Entry(NamedTuple):
    """A model and what is fused in it in eval and in training.

    eval, train: patterns with their numbers, "2 conv+bn+relu, conv+bn"; " | " separates lists that are equally right.
    convs: how often it convolves, if some of that is not fused.
    once: a module runs more than once in a call, so that patterns are compared without their numbers.
    random: the training draws of the fused copy are not torch's, so that values are compared in eval alone.
    nchw: torch itself gives NCHW whatever layout it gets.
    pixel: it enlarges a map of one pixel, on whose strides torch.compile and eager differ.
    """

    build: Callable[[], nn.Module]
    eval: str
    train: str
    convs: int | None = None
    shape: tuple[int, ...] = (2, 4, 8, 8)
    once: bool = False
    random: bool = False
    nchw: bool = False
    pixel: bool = False

    def inputs(self, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        x = torch.randn(self.shape, dtype=torch.float64)
        return x if self.nchw else x.contiguous(memory_format=layout)

    def patterns(self, training: bool) -> list[Counter]:
        return parse(self.train if training else self.eval)

    def counts(self, training: bool) -> list[tuple[int, int]]:
        """(fused, total) for each list of patterns: every convolution, and what was fused without one."""
        lists = self.patterns(training)
        with_conv = [sum(number for name, number in layers.items() if name.startswith("conv")) for layers in lists]
        return [
            (layers.total(), layers.total() + (0 if self.convs is None else self.convs - number))
            for layers, number in zip(lists, with_conv)
        ]


ZOO: dict[str, Entry] = {}


def entry(eval: str, train: str | None = None, **options: object) -> Callable:
    """Adds a class, or a function that builds a model, to the zoo."""

    def add(build: Callable[[], nn.Module]) -> Callable:
        assert build.__name__ not in ZOO
        ZOO[build.__name__] = Entry(build, eval, eval if train is None else train, **options)
        return build

    return add


def parse(text: str) -> list[Counter]:
    """ "2 conv+bn, bn+relu | conv+bn" -> [{"conv+bn": 2, "bn+relu": 1}, {"conv+bn": 1}]."""
    lists = []
    for choice in text.split("|"):
        counts: Counter = Counter()
        for item in filter(None, (item.strip() for item in choice.split(","))):
            number, _, pattern = item.rpartition(" ")
            counts[pattern] += int(number or 1)
        lists.append(counts)
    return lists


def conv(i: int = 4, o: int = 4, kernel: int = 3, **options: object) -> nn.Conv2d:
    """A convolution that keeps the size of its input, without a bias unless one is asked for."""
    if "padding" not in options:
        options["padding"] = options.get("dilation", 1) * (kernel // 2)
    return nn.Conv2d(i, o, kernel, **{"bias": False, **options})


def cbr(i: int = 4, o: int = 4, kernel: int = 3, act: nn.Module | None = None, **options: object) -> nn.Sequential:
    """Convolution, BatchNorm and an activation, in-place ReLU by default."""
    return nn.Sequential(conv(i, o, kernel, **options), nn.BatchNorm2d(o), act or nn.ReLU(inplace=True))


def cb(i: int = 4, o: int = 4, kernel: int = 3, **options: object) -> nn.Sequential:
    return nn.Sequential(conv(i, o, kernel, **options), nn.BatchNorm2d(o))
