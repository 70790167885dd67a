"""Which modules of a model are called, as far as the traces of their forwards tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from .. import nn as fused
from .rewrite import Plan
from .run import How
from .watch import CONTAINERS


class Visit(NamedTuple):
    """A module that is called, and its plans by training mode."""

    path: str
    module: nn.Module
    plans: dict[bool, Plan]

    @property
    def reasons(self) -> dict[bool, str]:
        """Why a mode has no trace."""
        return {mode: plan.reason for mode, plan in self.plans.items() if plan.reason}

    def name(self, target: str) -> str:
        return f"{self.path}.{target}" if self.path else target


def visit(root: nn.Module, modes: tuple[bool, ...], how: How) -> list[Visit]:
    """The modules whose forward is called; below one without a trace, all of them."""
    visits, seen = [], set()
    waiting: list[tuple[str, nn.Module | None]] = [("", root)]
    while waiting:
        path, module = waiting.pop(0)
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        plans = {mode: Plan(module, mode, how) for mode in modes} if _has_python_forward(module) else {}
        found = Visit(path, module, plans)
        called = dict.fromkeys(target for plan in plans.values() for target in plan.called)
        if plans:
            visits.append(found)
        if found.reasons or not plans:
            called = dict.fromkeys(module._modules)
        waiting[:0] = [(found.name(target), module_at(module, target)) for target in called]
    return visits


def _has_python_forward(module: nn.Module) -> bool:
    """torch's own modules and ours have no site in their forward; Sequential's is the exception."""
    home = type(module).__module__
    return type(module) is nn.Sequential or not (home == fused.__name__ or home.startswith("torch.nn."))


def module_at(owner: nn.Module, target: str) -> nn.Module | None:
    """The module that a graph's target names, or whose tensor it names."""
    for path in (target, target.rpartition(".")[0]):
        try:
            return owner.get_submodule(path) if path else None
        except AttributeError:
            continue
    return None


def calls(visits: list[Visit]) -> Counter:
    """How often each module is called or its tensors are read; twice where an untraced forward may call it too."""
    counted: Counter = Counter()
    for found in visits:
        for plan in found.plans.values():
            counted.update(id(module_at(found.module, target)) for target in plan.called)
        if found.reasons:
            counted.update(_within_reach(found.module))
    return counted


def _within_reach(owner: nn.Module) -> Iterator[int]:
    for child in owner._modules.values():
        if child is not None:
            yield id(child)
        if isinstance(child, CONTAINERS):
            yield from _within_reach(child)
