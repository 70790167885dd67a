"""Makes the calls of a finished graph cheap: the same operators, reached with less Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...core.torch_compat import OpOverload, caller, schema, without_autocast

aten = torch.ops.aten
_CONV2D_DEFAULTS = (1, 1, 0, 1)  # torch.conv2d's groups, dilation, padding, stride


def lean(gm: fx.GraphModule, autocast: bool) -> Callable[..., Any]:
    """The forward of the graph, whose operators are called without torch.ops' wrappers.

    aten's convolution is called as torch.conv2d, which C++ parses: 5 us less a call. autocast: the graph runs under it,
    and its sites have cast their arguments already.
    """
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            conv2d = node.target is aten.convolution.default and _conv2d_arguments(node)
            if conv2d:
                node.target, node.args = _conv2d_without_autocast if autocast else torch.conv2d, conv2d
            else:
                node.args, node.target = _without_defaults(node), _direct(node.target)
    gm.recompile()
    return gm.forward


def _conv2d_without_autocast(*arguments: Any) -> torch.Tensor:
    with without_autocast():
        return torch.conv2d(*arguments)


def _conv2d_arguments(node: fx.Node) -> tuple | None:
    if len(node.args) != 9 or node.kwargs:
        return None
    input, weight, bias, *geometry, transposed, _, groups = node.args
    if transposed or not all(isinstance(value, (tuple, list)) and len(value) == 2 for value in geometry):
        return None
    args = [input, weight, bias, *map(_shortest, geometry), groups]
    for default in _CONV2D_DEFAULTS:
        if not (type(args[-1]) is int and args[-1] == default):
            break
        args.pop()
    return tuple(args)


def _shortest(pair: Any) -> Any:
    """A pair as torch.conv2d parses it fastest: one number for both, else a tuple, which Python makes once."""
    first, second = pair
    return first if type(first) is type(second) is int and first == second else (first, second)


def _without_defaults(node: fx.Node) -> tuple:
    """The arguments without the last ones that have their defaults: each argument costs time, and so does None."""
    args, parameters = list(node.args), schema(node.target).arguments  # type: ignore[arg-type]
    if len(args) <= len(parameters):
        for argument in reversed(parameters[: len(args)]):
            if not argument.has_default_value() or not _same(args[-1], argument.default_value):
                break
            args.pop()
    return tuple(args)


def _same(given: Any, default: Any) -> bool:
    return type(given) is type(default) and isinstance(given, (bool, int, float, str, type(None))) and given == default


@functools.cache
def _direct(overload: OpOverload) -> Callable[..., Any]:
    """The C++ function behind an operator, with the names that fx prints."""
    direct = functools.partial(caller(overload))
    direct.__name__ = direct.__qualname__ = overload.name().replace("::", "_").replace(".", "_")  # type: ignore
    direct.__module__ = __name__  # type: ignore[attr-defined]
    return direct
