"""What a site's output is made of, so that it need not be kept for a backward: it is computed again, to the same bits.

An output y carries its recipe: its site's row and the arguments of that row's `_epilogue_again`, which are the site's
kept z, vectors and residual.
Who would keep y keeps those instead. A recipe that is lost, or whose tensors have changed since, costs memory and
never correctness.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

HELD = object()  # stands where a tensor is that is held by a weak reference
Kept = tuple[Any, ...]  # (the tensor,), or the row and the arguments of its `_epilogue_again` that give it


class Recipe(NamedTuple):
    """The arguments, HELD where a tensor is, the tensors, and the sum of their versions and y's."""

    held: tuple
    references: list[weakref.ref]
    versions: int

    def __reduce__(self):
        """A y that is saved or sent to another process goes without."""
        return (OrderedDict, ())  # one of the few that torch.load takes with weights_only


def attach(y: Tensor, arguments: tuple) -> None:
    """Gives y its recipe. Only its own site's graph keeps the tensors alive: after the backward the recipe is lost."""
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    if torch.compiler.is_compiling():
        made = _traced().produced(y, *tensors)
        if made != _traced().NESTED:
            y._atrous_traced = (arguments, made)  # type: ignore[attr-defined]
    elif not _checkpointed():
        held = tuple(HELD if isinstance(value, Tensor) else value for value in arguments)
        recipe = Recipe(held, [weakref.ref(tensor) for tensor in tensors], _versions(y, tensors))
        y._atrous_recipe = recipe  # type: ignore[attr-defined]


def keep(y: Tensor) -> Kept:
    """What to save in order to have y in the backward."""
    if torch.compiler.is_compiling():
        arguments, made = getattr(y, "_atrous_traced", None) or ((), None)
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        return arguments if tensors and _traced().current(y, *tensors) == made else (y,)
    if _checkpointed():
        return (y,)
    recipe = getattr(y, "_atrous_recipe", None)
    if not isinstance(recipe, Recipe):
        return (y,)
    held, references, made = recipe
    tensors = [tensor for reference in references if (tensor := reference()) is not None]
    if len(tensors) < len(references) or _versions(y, tensors) != made:
        return (y,)
    alive = iter(tensors)
    return tuple(next(alive) if value is HELD else value for value in held)


def value(kept: Kept) -> Tensor:
    if len(kept) == 1:
        return kept[0]
    row, z, *arguments = kept
    return row.primitive("_epilogue_again", z)(z, *arguments)


def _versions(y: Tensor, tensors: list[Tensor]) -> int:
    """Grows with every change in place of any of them."""
    return y._version + sum(tensor._version for tensor in tensors)


def _checkpointed() -> bool:
    """Whether activation checkpointing runs: it keeps nothing of the first run, so recipes would only last in the
    second, which must save what the first did."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


def _traced():
    from . import dynamo_versions  # it imports torch._dynamo, which takes a second

    return dynamo_versions
