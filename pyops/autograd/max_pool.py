"""Max-pooling that saves only the indices of the maxima for its backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.torch_compat import transformed
from .save import shape_and_layout, stand_in


def max_pool2d(input: Tensor, *geometry) -> Tensor:
    """F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode); torch's own in a transform."""
    run = F.max_pool2d if transformed((input,)) else MaxPool.apply
    return run(input, *geometry)


class MaxPool(torch.autograd.Function):
    """y = max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode).

    torch's own function saves x as well, of which its backward uses the size only.
    """

    @staticmethod
    def forward(ctx, input: Tensor, *geometry):
        y, indices = torch.ops.aten.max_pool2d_with_indices(
            input, *(_pair(value) for value in geometry[:4]), geometry[4]
        )
        ctx.geometry, ctx.input_like = geometry, shape_and_layout(input)
        ctx.save_for_backward(indices)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        (indices,) = ctx.saved_tensors
        geometry = (*(_pair(value) for value in ctx.geometry[:4]), ctx.geometry[4])
        input = stand_in(grad, *ctx.input_like)
        dx = torch.ops.aten.max_pool2d_with_indices_backward(grad, input, *geometry, indices)
        return dx, *(None for _ in geometry)


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
