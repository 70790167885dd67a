"""Max and average pools with dilation, for dilate_: nn.AvgPool2d has none, and nn.MaxPool2d pads by half a kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]
POOLS = (nn.AvgPool2d, nn.MaxPool2d)  # subclasses may compute something else


def pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class DilatedPool2d(nn.Module):
    """y[::f, ::f] = pool(x[::d, ::d]), d the dilation, f = d * (the pool's stride) / stride.

    pool: an nn.MaxPool2d, or an nn.AvgPool2d without padding; neither has dilation or return_indices.

    x: (N, C, H, W). Returns (N, C, ceil(H / stride), ceil(W / stride)), or less where the pool leaves out the last
    positions of x[::d, ::d].
    """

    def __init__(self, pool: nn.MaxPool2d | nn.AvgPool2d, stride: Pair, dilation: Pair):
        super().__init__()
        self.is_max, self.ceil_mode = isinstance(pool, nn.MaxPool2d), pool.ceil_mode
        self.kernel_size, self.padding, self.whole_stride = (
            pair(pool.kernel_size),
            pair(pool.padding),
            pair(pool.stride),
        )
        self.stride, self.dilation = stride, dilation

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_max:
            return self._sum(x) / self._sum(torch.ones_like(x[:1, :1]))
        y = F.max_pool2d(self._padded(x, -math.inf), self.kernel_size, self.stride, 0, self.dilation)
        rows, columns = (-(-self._kept(x, axis) // self.stride[axis]) for axis in (0, 1))
        return y[..., :rows, :columns]

    def _sum(self, x: Tensor) -> Tensor:
        padded, (rows, columns) = self._padded(x, 0.0), (self._kept(x, 0), self._kept(x, 1))
        size, dilation, stride = self.kernel_size, self.dilation, self.stride
        starts = [(dilation[0] * i, dilation[1] * j) for i in range(size[0]) for j in range(size[1])]
        return torch.stack([padded[..., i : i + rows : stride[0], j : j + columns : stride[1]] for i, j in starts]).sum(
            0
        )

    def _padded(self, x: Tensor, value: float) -> Tensor:
        """Returns x with so much padding that there is an output for each of its positions."""
        left = [padding * dilation for padding, dilation in zip(self.padding, self.dilation)]
        right = [d * (k - 1) - p for d, k, p in zip(self.dilation, self.kernel_size, left)]
        return F.pad(x, (left[1], right[1], left[0], right[0]), value=value)

    def _kept(self, x: Tensor, axis: int) -> int:
        """Returns how many positions to compute: one more would be a position that the pool has not."""
        size, dilation, stride = x.shape[2 + axis], self.dilation[axis], self.whole_stride[axis]
        padding, kernel = self.padding[axis], self.kernel_size[axis]
        positions = -(-size // dilation)
        count = (positions + 2 * padding - kernel + (stride - 1 if self.ceil_mode else 0)) // stride + 1
        if self.ceil_mode and (count - 1) * stride >= positions + padding:  # as torch: no window of padding alone
            count -= 1
        return min(size, count * stride * dilation)

    def extra_repr(self) -> str:
        kind = "max" if self.is_max else "average"
        return f"{kind}, kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


def refusal(module: Any) -> str | None:
    """Returns what dilation asks of a pool that does not have it, else None."""
    if isinstance(module, nn.AvgPool2d) and (pair(module.padding) != (0, 0) or module.divisor_override):
        return "average pools without padding and divisor_override"
    if isinstance(module, nn.MaxPool2d) and (module.return_indices or pair(module.dilation) != (1, 1)):
        return "max pools without return_indices and dilation"
    return None
