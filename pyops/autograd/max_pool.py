"""Max-pooling that keeps no more than where the maxima were."""

from __future__ import annotations

import torch
from torch import Tensor

from .save import once, size_and_layout, stand_in


class MaxPool(torch.autograd.Function):
    """max_pool2d that keeps the places of the maxima alone: its gradient asks of its input only the size."""

    @staticmethod
    def forward(ctx, input: Tensor, *geometry):
        y, places = torch.ops.aten.max_pool2d_with_indices(
            input, *(_pair(value) for value in geometry[:4]), geometry[4]
        )
        ctx.geometry, ctx.like = geometry, size_and_layout(input)
        ctx.save_for_backward(places)
        return y

    @staticmethod
    @once
    def backward(ctx, grad: Tensor):
        (places,) = ctx.saved_tensors
        geometry = (*(_pair(value) for value in ctx.geometry[:4]), ctx.geometry[4])
        found = torch.ops.aten.max_pool2d_with_indices_backward(grad, stand_in(grad, *ctx.like), *geometry, places)
        return found, *(None for _ in geometry)


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
