"""The convolutions of ResNet34, and the work that each of them is."""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    @property
    def geometry(self) -> tuple:
        return (self.stride,) * 2, (self.dilation * (self.kernel // 2),) * 2, (self.dilation,) * 2

    @property
    def out_size(self) -> int:
        return (self.size - 1) // self.stride + 1

    def flop(self, batch: int) -> int:
        """Of one pass; forward, dgrad and wgrad do the same work."""
        return 2 * batch * self.out_channels * self.out_size**2 * self.in_channels * self.kernel**2


def layers(size: int = 224) -> list[Layer]:
    """The distinct convolutions of ResNet34 on an image of this size, each under the name of its first."""
    found: dict[tuple, list[str]] = {}
    with torch.device("meta"):
        model = models.resnet34().eval()
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):

                def note(conv, args, name=name):
                    shape = conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], args[0].shape[-1]
                    found.setdefault(shape, []).append(name)

                module.register_forward_pre_hook(note)
        model(torch.empty(1, 3, size, size))
    return [Layer(names[0], len(names), *shape) for shape, names in found.items()]


def dilated(plain: list[Layer], dilations: tuple[int, ...] = (1, 2, 4)) -> list[Layer]:
    """A 1x1 convolution has no dilation."""
    return [replace(layer, dilation=d) for layer in plain for d in dilations if layer.kernel > 1 or d == 1]
