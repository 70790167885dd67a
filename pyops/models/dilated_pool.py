"""Pools with dilation, for dilate_: nn.AvgPool2d has none, and nn.MaxPool2d pads by half of its kernel at most."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]


class DilatedAvgPool2d(nn.AvgPool2d):
    """y[p, q] = mean of x[p stride + i dilation, q stride + j dilation] over the i < kH, j < kW inside of the map.

    x: (N, C, H, W). Returns (N, C, ceil(H / stride), ceil(W / stride)). With dilation 1 and stride = kernel this is
    nn.AvgPool2d(kernel, ceil_mode=True), and any nn.AvgPool2d(kernel) where kernel divides H and W.
    """

    def __init__(self, kernel_size: Pair, stride: Pair, dilation: Pair):
        super().__init__(kernel_size, stride)
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        return self._sum(x) / self._sum(torch.ones_like(x[:1, :1]))

    def _sum(self, x: Tensor) -> Tensor:
        (height, width), (rows, columns) = x.shape[2:], self.kernel_size
        padded = F.pad(x, (0, self.dilation[1] * (columns - 1), 0, self.dilation[0] * (rows - 1)))
        starts = [(self.dilation[0] * i, self.dilation[1] * j) for i in range(rows) for j in range(columns)]
        parts = [padded[..., i : i + height : self.stride[0], j : j + width : self.stride[1]] for i, j in starts]
        return torch.stack(parts).sum(0)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


class DilatedMaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d whose padding may be as large as its dilation asks for."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.padding
        padded = F.pad(x, (columns, columns, rows, rows), value=-math.inf)
        return F.max_pool2d(padded, self.kernel_size, self.stride, 0, self.dilation, self.ceil_mode)


POOLS = (nn.AvgPool2d, nn.MaxPool2d, DilatedAvgPool2d, DilatedMaxPool2d)  # of these types, not of their subclasses


def dilated_pool(module: Any, change: dict[str, Pair]) -> nn.Module | None:
    """Returns the pool that takes the place of a pool with new values; None if the pool itself can take them."""
    if type(module) is nn.AvgPool2d:
        kernel = module.kernel_size
        pool = DilatedAvgPool2d((kernel, kernel) if isinstance(kernel, int) else kernel, **change)
    elif type(module) is nn.MaxPool2d and "dilation" in change:
        values = {"stride": module.stride, "padding": (0, 0)} | change
        pool = DilatedMaxPool2d(module.kernel_size, **values, ceil_mode=module.ceil_mode)
    else:
        return None
    return pool.train(module.training)
