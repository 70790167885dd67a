"""Helpers of the autograd functions: saving mixed values for the backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.layout import memory_format


def save(ctx, *groups: tuple) -> None:
    """Saves groups of tensors and other values: tensors by save_for_backward, the others on ctx."""
    values = [value for group in groups for value in group]
    ctx.others = [None if isinstance(value, Tensor) else (value,) for value in values]
    ctx.save_for_backward(*(value for value, other in zip(values, ctx.others) if other is None))
    ctx.lengths = [len(group) for group in groups]


def saved(ctx) -> list[tuple]:
    """The groups that were passed to save()."""
    tensors = iter(ctx.saved_tensors)
    values = iter([next(tensors) if other is None else other[0] for other in ctx.others])
    return [tuple(next(values) for _ in range(length)) for length in ctx.lengths]


def shape_and_layout(x: Tensor) -> tuple:
    return tuple(x.shape), memory_format(x)


def stand_in(grad: Tensor, shape: tuple[int, ...], layout: torch.memory_format) -> Tensor:
    """An uninitialized tensor in place of an input of which a backward uses the size only."""
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
