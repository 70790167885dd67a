"""A second module tree over the same parameters."""

from __future__ import annotations

import copy
from types import MethodType

from torch import nn


class Generated:
    """Base of the forwards that fuse() puts on instances: a twin does not inherit them."""


def twin(root: nn.Module) -> nn.Module:
    """The same classes, names and attributes, and the very same parameter and buffer dicts, so that moving or swapping
    a tensor in one is seen by both. Its own: children, training flags and hooks. A module used twice stays one module.
    """
    twins: dict[int, nn.Module] = {}
    result = _twin(root, twins)
    for module in twins.values():
        _rebind(vars(module), twins)
        for name in filter(_own, vars(module)):
            _rebind(vars(module)[name], twins)
    return result


def _rebind(values: dict, twins: dict[int, nn.Module]) -> None:
    """A method that is kept as an attribute or a hook belongs to the twin of its object."""
    for name, value in values.items():
        if isinstance(value, MethodType) and id(value.__self__) in twins:
            values[name] = MethodType(value.__func__, twins[id(value.__self__)])


def _own(name: str) -> bool:
    """Whether a twin has its own dict of these: hooks."""
    return name.startswith("_") and name.endswith(("_hooks", "_with_kwargs", "_always_called"))


def _twin(module: nn.Module, twins: dict[int, nn.Module]) -> nn.Module:
    if id(module) in twins:
        return twins[id(module)]
    result = twins[id(module)] = object.__new__(type(module))
    vars(result).update({name: value for name, value in vars(module).items() if not isinstance(value, Generated)})
    for name in filter(_own, vars(module)):
        vars(result)[name] = copy.copy(vars(module)[name])
    children = copy.copy(module._modules)
    for name, child in children.items():
        children[name] = None if child is None else _twin(child, twins)
    vars(result)["_modules"] = children
    return result
