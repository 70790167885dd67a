"""Guards of a plan: the module structure and attributes that it depends on."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core.torch_compat import children, has_hooks
from .sites import Chain

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
PLAIN = (bool, int, float, str, type(None))
OWN = vars(nn.Module()).keys() | {"forward", "train"}
Path = tuple[str, ...]
# name, type, is it part of a fused site, its own children if the plan depends on them
Child = tuple[str, type, bool, "list | None"]


class Watch:
    """The children that a forward saw, the attributes that it read, and the modules that its sites replace.

    called: the targets of its graph. reads: the attributes of the owner that it read.
    """

    def __init__(self, owner: nn.Module, called: list[str], reads: set[str], chains: list[Chain]):
        parts = [target.split(".") for target in called]
        # submodules whose children it used, as in self.encoder.conv(x)
        entered = {".".join(names[:end]) for names in parts for end in range(1, len(names))}
        replaced = {str(n.target) for c in chains if len(c.roles) > 1 for _, n in c.steps if n.op == "call_module"}
        self.children = _children(owner, entered, replaced)
        self.same = _same(owner, called)
        self.values: list[tuple[Path, str, object]] = []
        self._read((), owner, reads)
        for path in sorted(entered):
            inside = owner.get_submodule(path)
            self._read(tuple(path.split(".")), inside, set(vars(inside)))

    def _read(self, path: Path, module: nn.Module, reads: set[str]) -> None:
        self.values += [
            (path, name, value) for name, value in vars(module).items() if name in reads and name not in OWN
        ]

    def holds(self, owner: nn.Module) -> bool:
        """True if nothing has changed. Runs at each call, in plain loops that torch.compile can trace and guard on."""
        if not _hold(self.children, children(owner)):
            return False
        for path, name, value in self.values:
            now = getattr(_at(owner, path), name, self)
            if now is not value and not (type(now) is type(value) and isinstance(now, PLAIN) and now == value):
                return False
        for path, other in self.same:
            if _at(owner, path) is not _at(owner, other):
                return False
        return True


def _children(owner: nn.Module, entered: set[str], replaced: set[str], prefix: str = "") -> list[Child]:
    """Returns all children, with their own for containers and for submodules whose children were used."""
    result: list[Child] = []
    for name, child in children(owner).items():
        path = prefix + name
        inside = None
        if child is not None and (isinstance(child, CONTAINERS) or path in entered):
            inside = _children(child, entered, replaced, path + ".")
        result.append((name, type(child), path in replaced, inside))
    return result


def _hold(expected: list[Child], modules: dict[str, Any]) -> bool:
    if len(modules) != len(expected):
        return False
    for (name, kind, replaced, inside), now in zip(expected, modules):
        child = modules[now]
        if type(child) is not kind or name != now:
            return False
        if replaced and not _bare(child):
            return False
        if inside is not None and not _hold(inside, children(child)):
            return False
    return True


def _bare(module: nn.Module) -> bool:
    """True if a call runs only the forward of its class, as nodes.not_fusible() requires."""
    return not has_hooks(module) and "forward" not in module.__dict__


def _at(module: Any, path: Path) -> Any:
    for name in path:
        module = getattr(module, name, None)
    return module


def _same(owner: nn.Module, called: list[str]) -> list[tuple[Path, Path]]:
    """Returns pairs of names of one module: fx uses the first name for both, correct only while they are one module."""
    first: dict[nn.Module, str] = {}
    pairs = []
    for path, module in owner.named_modules(remove_duplicate=False):
        known = first.setdefault(module, path)
        if known != path and known in called:
            pairs.append((tuple(path.split(".")), tuple(known.split("."))))
    return pairs
