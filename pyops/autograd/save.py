"""What the autograd functions share: how they keep values, and that their gradients have no gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.layout import memory_format

REFUSAL = (
    "atrous: a fused site cannot be asked to differentiate twice: its gradient has none of its own (use the model as "
    "it was made, unfused)"
)


def once(backward: Callable) -> Callable:
    """Gradients whose own gradient raises an error. torch's once_differentiable lets them pass for constants where the
    incoming gradient needs none, and a penalty on them would be lost."""

    @functools.wraps(backward)
    def run(ctx, *grads):
        with torch.no_grad():
            found = backward(ctx, *grads)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # create_graph=True asks for more
            return found
        tensors = [value.detach().requires_grad_() for value in found if value is not None]
        marked = iter(torch._C._functions.DelayedError(REFUSAL, len(tensors))(*tensors))
        return tuple(value if value is None else next(marked) for value in found)

    return run


def save(ctx, *groups: tuple) -> None:
    values = [value for group in groups for value in group]
    ctx.others = [None if isinstance(value, Tensor) else (value,) for value in values]
    ctx.save_for_backward(*(value for value, other in zip(values, ctx.others) if other is None))
    ctx.lengths = [len(group) for group in groups]


def saved(ctx) -> list[tuple]:
    """The groups as they were given to save."""
    tensors = iter(ctx.saved_tensors)
    values = iter([next(tensors) if other is None else other[0] for other in ctx.others])
    return [tuple(next(values) for _ in range(length)) for length in ctx.lengths]


def size_and_layout(x: Tensor) -> tuple:
    return tuple(x.shape), memory_format(x)


def stand_in(grad: Tensor, shape: tuple[int, ...], layout: torch.memory_format) -> Tensor:
    """For an input of which the convolution's backward asks the size only."""
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
