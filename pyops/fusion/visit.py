"""Visits the modules of a model that are called, according to the traces of their forwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from .. import nn as fused
from ..core.torch_compat import children
from .rewrite import Plan
from .run import FuseOptions
from .watch import CONTAINERS


class Visit(NamedTuple):
    """A called module, and its plans by training mode."""

    path: str
    module: nn.Module
    plans: dict[bool, Plan]

    @property
    def reasons(self) -> dict[bool, str]:
        """For each mode without a trace, the reason."""
        return {mode: plan.reason for mode, plan in self.plans.items() if plan.reason}

    def name(self, target: str) -> str:
        return f"{self.path}.{target}" if self.path else target


def visit(root: nn.Module, modes: tuple[bool, ...], options: FuseOptions) -> list[Visit]:
    """Returns the modules whose forward is called; below a module without a trace, all modules."""
    visits, seen = [], set()
    waiting: list[tuple[str, nn.Module | None]] = [("", root)]
    while waiting:
        path, module = waiting.pop(0)
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        plans = {mode: Plan(module, mode, options) for mode in modes} if _has_python_forward(module) else {}
        visited = Visit(path, module, plans)
        called = dict.fromkeys(target for plan in plans.values() for target in plan.called)
        if plans:
            visits.append(visited)
        if visited.reasons or not plans:
            called = dict.fromkeys(children(module))
        waiting[:0] = [(visited.name(target), module_at(module, target)) for target in called]
    return visits


def _has_python_forward(module: nn.Module) -> bool:
    """False for modules of torch and of this package, whose forward has no site; Sequential is the exception."""
    home = type(module).__module__
    return type(module) is nn.Sequential or not (home == fused.__name__ or home.startswith("torch.nn."))


def module_at(owner: nn.Module, target: str) -> nn.Module | None:
    """Returns the module with this path, or the owner of the tensor with this path."""
    for path in (target, target.rpartition(".")[0]):
        try:
            return owner.get_submodule(path) if path else None
        except AttributeError:
            continue
    return None


def calls(visits: list[Visit]) -> Counter:
    """Counts calls of each module, reads of its tensors included; one more if an untraced forward may call it."""
    counted: Counter = Counter()
    for visited in visits:
        for plan in visited.plans.values():
            counted.update(id(module_at(visited.module, target)) for target in plan.called)
        if visited.reasons:
            counted.update(_within_reach(visited.module))
    return counted


def _within_reach(owner: nn.Module) -> Iterator[int]:
    for child in children(owner).values():
        if child is not None:
            yield id(child)
        if isinstance(child, CONTAINERS):
            yield from _within_reach(child)
