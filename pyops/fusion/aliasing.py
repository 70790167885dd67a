"""Alias analysis of an fx graph: values that may share memory, and memory that a node may write.

Fusing moves a convolution to the position of its activation. That is safe if no node between the two may write what the
convolution reads. Unknown operations count as "may".
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from .nodes import target, uses

FRESH_MODULES = (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Linear, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d)
FRESH_FUNCTIONS = (operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.mul, torch.cat)
WRITING_OPERATORS = ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul",
                     "iand", "ior", "ixor", "ilshift", "irshift")  # fmt: skip
INPUTS = "inputs"  # one root for all arguments of a forward: two of them may be the same tensor


class Aliasing:
    def __init__(self, modules: dict[str, nn.Module]):
        self.modules = modules
        self.known: dict[fx.Node, frozenset] = {}

    def roots(self, node: fx.Node) -> frozenset:
        """Returns the nodes whose memory the value of this node may share."""
        if node not in self.known:
            self.known[node] = self._roots(node)
        return self.known[node]

    def _roots(self, node: fx.Node) -> frozenset:
        if node.op == "placeholder":
            return frozenset([INPUTS])
        if node.op == "get_attr":
            return frozenset([node.target])
        if node.op == "call_module" and _makes_fresh(self.modules.get(target(node))):
            return frozenset([node])
        if node.op == "call_function" and node.target in FRESH_FUNCTIONS and "out" not in node.kwargs:
            return frozenset([node])
        return frozenset([node]).union(*map(self.roots, node.all_input_nodes))

    def private(self, node: fx.Node) -> bool:
        """True if only the node's single user can see the memory of its value."""
        if uses(node) != 1:
            return False
        if self.roots(node) == {node}:
            return True
        through = node.all_input_nodes
        return node.op == "call_module" and len(through) == 1 and self._passes(node) and self.private(through[0])

    def _passes(self, node: fx.Node) -> bool:
        return type(self.modules.get(target(node))).__module__.startswith("torch.nn.")

    def may_write(self, node: fx.Node) -> frozenset:
        """Returns the roots of the memory that this node may write."""
        if node.op == "call_module" and not _pure(self.modules.get(target(node))):
            return frozenset().union(*map(self.roots, node.all_input_nodes))
        if node.op == "call_method" and target(node).endswith("_") and not target(node).endswith("__"):
            return self.roots(node.all_input_nodes[0])
        if node.op == "call_function" and _writes(node):
            return frozenset().union(*map(self.roots, node.all_input_nodes))
        return frozenset()


def _makes_fresh(module: nn.Module | None) -> bool:
    """True if the module's output is always new memory."""
    if type(module) is nn.Sequential and len(module):
        return _makes_fresh(module[-1])
    return type(module) in FRESH_MODULES or type(module).__name__ == "FrozenConv2d"


def _pure(module: nn.Module | None) -> bool:
    """True if it consists of torch's own modules and none of them works in place."""
    parts = module.modules() if module is not None else [None]
    return all(type(m).__module__.startswith("torch.nn.") and not getattr(m, "inplace", False) for m in parts)


def _writes(node: fx.Node) -> bool:
    name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", None) or ""
    if home == "_operator":
        return name in WRITING_OPERATORS
    known = home in ("math", "builtins", "") or home.split(".")[0] == "torch"
    flags = [node.kwargs.get("inplace", False), *node.args[1:]]
    return not known or name.endswith("_") or "out" in node.kwargs or any(flag is True for flag in flags)
