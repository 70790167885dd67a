"""Copies a module tree so that both trees share parameters and buffers."""

from __future__ import annotations

import copy
from types import MethodType

from torch import nn

from ..core.torch_compat import children, hook_dicts, set_children


class Generated:
    """Base class of the forwards that fuse() sets on instances; a copy does not take them over."""


def shared_copy(root: nn.Module) -> nn.Module:
    """Returns a module tree with the same classes, names and attributes that shares the parameter and buffer dicts, so
    that moving or replacing a tensor affects both. Children, training flags and hooks are its own. A module that is
    used twice stays one module.
    """
    copies: dict[int, nn.Module] = {}
    result = _copy(root, copies)
    for module in copies.values():
        _rebind(vars(module), copies)
        for hooks in hook_dicts(module).values():
            _rebind(hooks, copies)
    return result


def _rebind(values: dict, copies: dict[int, nn.Module]) -> None:
    """Binds methods that are stored as attributes or hooks to the copies of their objects."""
    for name, value in values.items():
        if isinstance(value, MethodType) and id(value.__self__) in copies:
            values[name] = MethodType(value.__func__, copies[id(value.__self__)])


def _copy(module: nn.Module, copies: dict[int, nn.Module]) -> nn.Module:
    if id(module) in copies:
        return copies[id(module)]
    result = copies[id(module)] = object.__new__(type(module))
    vars(result).update({name: value for name, value in vars(module).items() if not isinstance(value, Generated)})
    vars(result).update({name: copy.copy(hooks) for name, hooks in hook_dicts(module).items()})
    named = {name: None if child is None else _copy(child, copies) for name, child in children(module).items()}
    set_children(result, named)
    return result
