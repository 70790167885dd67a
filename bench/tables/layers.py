"""The convolutions of ResNet34, and the work that each of them is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from atrous import models


@dataclass(frozen=True)
class Layer:
    """A convolution of the network that occurs `count` times; its padding keeps the output size at any dilation."""

    name: str
    count: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    size: int  # of the input
    dilation: int = 1

    def __str__(self) -> str:
        return f"{self.name} dilation {self.dilation}"

    @property
    def geometry(self) -> tuple:
        return (self.stride,) * 2, (self.dilation * (self.kernel // 2),) * 2, (self.dilation,) * 2

    @property
    def out_size(self) -> int:
        return (self.size - 1) // self.stride + 1

    def flop(self, batch: int) -> int:
        """Of one pass; forward, dgrad and wgrad do the same work."""
        return 2 * batch * self.out_channels * self.out_size**2 * self.in_channels * self.kernel**2


@dataclass(frozen=True)
class Site(Layer):
    """A convolution with what the network puts behind it: BatchNorm, the block's input, a slope for each channel."""

    act: bool = True
    residual: bool = False


Some = TypeVar("Some", bound=Layer)


def convolutions(size: int = 224) -> list[Layer]:
    """Every convolution of ResNet34 on an image of this size, in the order in which they run."""
    found: list[Layer] = []
    with torch.device("meta"):
        model = models.resnet34().eval()
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):

                def note(conv, args, name=name):
                    shape = conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], args[0].shape[-1]
                    found.append(Layer(name, 1, *shape))

                module.register_forward_pre_hook(note)
        model(torch.empty(1, 3, size, size))
    return found


def distinct(every: list[Some]) -> list[Some]:
    """Those that differ in more than their names, each under the name of its first."""
    names: dict[Some, list[str]] = {}
    for layer in every:
        names.setdefault(replace(layer, name=""), []).append(layer.name)
    return [replace(layer, name=found[0], count=len(found)) for layer, found in names.items()]


def layers(size: int = 224) -> list[Layer]:
    return distinct(convolutions(size))


def sites(size: int = 224) -> list[Site]:
    """As layers(), but a convolution with a residual is another site than the same one without."""
    return distinct([
        Site(**vars(layer), act="downsample" not in layer.name, residual=layer.name.endswith("conv2"))
        for layer in convolutions(size)
    ])  # fmt: skip


def dilated(plain: list[Some], dilations: tuple[int, ...] = (1, 2, 4)) -> list[Some]:
    """A 1x1 convolution has no dilation."""
    return [replace(layer, dilation=d) for layer in plain for d in dilations if layer.kernel > 1 or d == 1]
