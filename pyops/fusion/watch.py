"""What a plan was made from, and whether it is still so."""

from __future__ import annotations

from typing import Any

from torch import nn

from .sites import Chain

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
PLAIN = (bool, int, float, str, type(None))
OWN = vars(nn.Module()).keys() | {"forward", "train"}
Path = tuple[str, ...]
Child = tuple[str, type, bool, "list | None"]  # name, type, swallowed by a site?, its own children if they matter


class Watch:
    """The children that a forward saw, the attributes that it read, and the modules that its sites swallow.

    called: the targets of its graph; reads: the attributes of the owner that it looked at.
    """

    def __init__(self, owner: nn.Module, called: list[str], reads: set[str], chains: list[Chain]):
        parts = [target.split(".") for target in called]
        # submodules whose inside it used, as self.encoder.conv(x) does
        walked = {".".join(names[:end]) for names in parts for end in range(1, len(names))}
        swallowed = {str(n.target) for c in chains if len(c.roles) > 1 for _, n in c.steps if n.op == "call_module"}
        self.children = _children(owner, walked, swallowed)
        self.same = _same(owner, called)
        self.values: list[tuple[Path, str, object]] = []
        self._read((), owner, reads)
        for path in sorted(walked):
            inside = owner.get_submodule(path)
            self._read(tuple(path.split(".")), inside, set(vars(inside)))

    def _read(self, path: Path, module: nn.Module, reads: set[str]) -> None:
        self.values += [
            (path, name, value) for name, value in vars(module).items() if name in reads and name not in OWN
        ]

    def holds(self, owner: nn.Module) -> bool:
        """Asked at each call, so it is plain loops, which torch.compile follows and guards on as well."""
        if not _hold(self.children, owner._modules):
            return False
        for path, name, value in self.values:
            now = getattr(_at(owner, path), name, self)
            if now is not value and not (type(now) is type(value) and isinstance(now, PLAIN) and now == value):
                return False
        for path, other in self.same:
            if _at(owner, path) is not _at(owner, other):
                return False
        return True


def _children(owner: nn.Module, walked: set[str], swallowed: set[str], prefix: str = "") -> list[Child]:
    """All children; also of those below containers and below what was walked through."""
    found: list[Child] = []
    for name, child in owner._modules.items():
        path = prefix + name
        inside = None
        if child is not None and (isinstance(child, CONTAINERS) or path in walked):
            inside = _children(child, walked, swallowed, path + ".")
        found.append((name, type(child), path in swallowed, inside))
    return found


def _hold(expected: list[Child], modules: dict[str, Any]) -> bool:
    if len(modules) != len(expected):
        return False
    for (name, kind, swallowed, inside), now in zip(expected, modules):
        child = modules[now]
        if type(child) is not kind or name != now:
            return False
        if swallowed and not _bare(child):
            return False
        if inside is not None and not _hold(inside, modules[now]._modules):
            return False
    return True


def _bare(module: nn.Module) -> bool:
    """Nothing runs but the forward of its class: as nodes.swallowing() found."""
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or "forward" in module.__dict__
    )  # fmt: skip


def _at(module: Any, path: Path) -> Any:
    for name in path:
        module = getattr(module, name, None)
    return module


def _same(owner: nn.Module, called: list[str]) -> list[tuple[Path, Path]]:
    """Modules that are in the tree twice: fx calls both by the first name, which is right while they are one module."""
    first: dict[nn.Module, str] = {}
    pairs = []
    for path, module in owner.named_modules(remove_duplicate=False):
        known = first.setdefault(module, path)
        if known != path and known in called:
            pairs.append((tuple(path.split(".")), tuple(known.split("."))))
    return pairs
