"""Pair, the model of most tests of tests/fusion/, whose forward each test writes in its own way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

BOTH = {"conv+bn+relu": 1, "conv+bn+add+prelu": 1}  # the layers that are fused in first() and second()


class Pair(nn.Module):
    """Two layers: first(x) = relu(bn1(conv1(x))), second(y, r) = prelu(bn2(conv2(y)) + r); y = second(first(x), x)."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(4, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2, self.bn2, self.prelu = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(4)

    def first(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def second(self, y: Tensor, residual: Tensor) -> Tensor:
        return self.prelu(self.bn2(self.conv2(y)) + residual)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), x)

    def describe(self, x: Tensor) -> Tensor:
        """A method beside the forward."""
        return self.first(x).mean((2, 3))


def written(forward: Callable, prepare: Callable[[Pair], object] | None = None) -> Callable[[], Pair]:
    """A function that builds a Pair whose forward is `forward(self, ...)`, after `prepare(model)` if it is given."""
    cls = type(f"Pair_{forward.__name__}", (Pair,), {"forward": forward})

    def build() -> Pair:
        model = cls()
        if prepare is not None:
            prepare(model)
        return model

    return build


def image(batch: int = 2, channels: int = 4, size: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, channels, size, size, dtype=dtype)
