"""The convolution layers of ResNet34: shapes and FLOP counts."""

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
    size: int  # input height and width
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
        """FLOP of one pass, two per multiply-add; forward, dgrad and wgrad have the same count."""
        return 2 * batch * self.out_channels * self.out_size**2 * self.in_channels * self.kernel**2


@dataclass(frozen=True)
class FusedLayer(Layer):
    """A convolution with its epilogue in the network: BatchNorm, residual add, channel-wise PReLU."""

    act: bool = True
    residual: bool = False


AnyLayer = TypeVar("AnyLayer", bound=Layer)


def convolutions(size: int = 224) -> list[Layer]:
    """Every convolution of ResNet34 on an image of this size, in the order in which they run."""
    convs: list[Layer] = []
    with torch.device("meta"):
        model = models.resnet34().eval()
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):

                def add_layer(conv, args, name=name):
                    shape = conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], args[0].shape[-1]
                    convs.append(Layer(name, 1, *shape))

                module.register_forward_pre_hook(add_layer)
        model(torch.empty(1, 3, size, size))
    return convs


def distinct(every: list[AnyLayer]) -> list[AnyLayer]:
    """Merges layers that differ only in their names; each keeps the first name and gets the count."""
    names: dict[AnyLayer, list[str]] = {}
    for layer in every:
        names.setdefault(replace(layer, name=""), []).append(layer.name)
    return [replace(layer, name=same[0], count=len(same)) for layer, same in names.items()]


def layers(size: int = 224) -> list[Layer]:
    return distinct(convolutions(size))


def fusable_layers(size: int = 224) -> list[FusedLayer]:
    """As layers(), with epilogues: equal convolutions with and without a residual are two layers."""
    return distinct([
        FusedLayer(**vars(layer), act="downsample" not in layer.name, residual=layer.name.endswith("conv2"))
        for layer in convolutions(size)
    ])  # fmt: skip


def dilated(plain: list[AnyLayer], dilations: tuple[int, ...] = (1, 2, 4)) -> list[AnyLayer]:
    """Every layer at every dilation; 1x1 convolutions at dilation 1 alone."""
    return [replace(layer, dilation=d) for layer in plain for d in dilations if layer.kernel > 1 or d == 1]
