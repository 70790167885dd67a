"""Recomputes the output of a fused layer in the backward, to the same bits, so that it need not be saved.

An output y refers to its layer's backend and to the tensors and numbers that this backend's primitive `_epilogue_again`
computes it from: the layer's saved z, vectors and residual. A layer that would save y saves those instead. If they are
gone, or have changed since, y itself is saved: that costs memory, never correctness.

Under activation checkpointing y is saved, too: nothing of its first run stays alive, so y could be recomputed in its
second run only; but the second run must save exactly what the first saved.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.spec import Epilogue
from ..core.torch_compat import checkpointing, is_compiling, version

# (y,), or (edge, backend, z, *epilogue): its `_epilogue_again` recomputes y, whose gradient is that of edge
Saved = tuple[Any, ...]
TENSOR = object()  # placeholder of a tensor to which there is a weak reference


class Recompute(NamedTuple):
    """How to recompute y: an attribute of y, which keeps no tensor alive."""

    arguments: tuple  # with TENSOR in place of each tensor
    tensors: list[weakref.ref]
    versions: int  # the sum of the versions of y and of the tensors

    def __reduce__(self):
        """A tensor that is saved to a file or sent to another process loses this attribute's content."""
        return (OrderedDict, ())  # a type that torch.load accepts with weights_only=True


def attach(y: Tensor, arguments: tuple) -> None:
    """Attaches to y how to recompute it: (backend, z, *epilogue).

    Only the autograd graph of y's layer keeps the tensors alive: after the backward y can no longer be recomputed.
    """
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    if is_compiling():
        versions = _dynamo_versions().mark_and_sum_versions(y, *tensors)
        if versions != _dynamo_versions().NESTED:
            y._atrous_traced = (arguments, versions)  # type: ignore[attr-defined]
    elif not checkpointing():
        slots = tuple(TENSOR if isinstance(value, Tensor) else value for value in arguments)
        y._atrous_recompute = Recompute(  # type: ignore[attr-defined]
            slots, [weakref.ref(tensor) for tensor in tensors], _versions(y, tensors)
        )


def to_save(y: Tensor) -> Saved:
    """The tuple to save, from which restore() gives y in the backward."""
    if is_compiling():
        arguments, versions = getattr(y, "_atrous_traced", None) or ((), None)
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        return (None, *arguments) if tensors and _dynamo_versions().sum_versions(y, *tensors) == versions else (y,)
    if checkpointing():
        return (y,)
    recompute = getattr(y, "_atrous_recompute", None)
    if not isinstance(recompute, Recompute):
        return (y,)
    tensors = [tensor for reference in recompute.tensors if (tensor := reference()) is not None]
    if len(tensors) < len(recompute.tensors) or _versions(y, tensors) != recompute.versions:
        return (y,)
    alive = iter(tensors)
    return _edge(y), *(next(alive) if value is TENSOR else value for value in recompute.arguments)


def _edge(y: Tensor) -> Tensor:
    """A tensor without memory that has y's place in the autograd graph."""
    (edge,) = torch.unsafe_chunk(y, 1)  # not a view, which would keep y alive
    edge.data = y.new_empty(0)
    return edge


def restore(saved: Saved) -> Tensor:
    """The tensor for which to_save() returned this: as it was saved, or recomputed."""
    if len(saved) == 1:
        return saved[0]
    _, backend, z, *epilogue = saved
    return backend.primitive("_epilogue_again", z)(z, Epilogue(*epilogue))


def connected(saved: Saved) -> Tensor:
    """restore(saved) with its place in the autograd graph."""
    y = restore(saved)
    return y if len(saved) == 1 else WithValue.apply(saved[0], y)


class WithValue(torch.autograd.Function):
    """`value` in the place that `like` has in the autograd graph."""

    generate_vmap_rule = True

    @staticmethod
    def forward(like: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx, inputs, output): ...

    @staticmethod
    def backward(ctx, grad: Tensor):
        # a value that can be differentiated stays in the graph, as a tensor that a function saves does
        return grad, torch.zeros_like(grad) if ctx.needs_input_grad[1] else None


def _versions(y: Tensor, tensors: list[Tensor]) -> int:
    """A number that grows with every in-place change of any of these tensors."""
    return version(y) + sum(map(version, tensors))


def _dynamo_versions():
    from . import dynamo_versions  # imported here, because importing torch._dynamo takes a second

    return dynamo_versions
