"""The memory that a node of a graph writes, values that share memory, and the autocast state under which a node runs.

A graph's fake tensors share a storage exactly where the model's tensors do, so aliasing is known and not guessed.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from ...core import torch_compat
from ...core.torch_compat import OpOverload, schema, storage_id
from . import spellings

_WRITING_OPERATORS = ("iadd", "iand", "iconcat", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow",
                      "irshift", "isub", "itruediv", "ixor", "setitem", "delitem")  # fmt: skip
_PURE_HOMES = ("torch", "math", "builtins", "_operator", "einops")


def value(node: Any) -> Any:
    """The fake value of a node; a number is its own."""
    if not isinstance(node, fx.Node):
        return node
    return node.meta.get("example_value", node.meta.get("val"))


def is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(value(node), Tensor)


def storage(node: fx.Node) -> int | None:
    """Identifies the memory of a node's value; None if it has none, as a sparse tensor."""
    try:
        return storage_id(value(node)) if is_tensor(node) else None
    except (RuntimeError, NotImplementedError):
        return None


def is_barrier(node: fx.Node) -> bool:
    """True if the node may change how the nodes behind it compute: it enters or leaves a mode."""
    return node.op == "call_function" and value(node) is None and not isinstance(node.target, OpOverload)


def written(node: fx.Node) -> list[fx.Node]:
    """The nodes whose memory this node may write."""
    if node.op in ("placeholder", "get_attr", "output"):
        return []
    if node.op == "call_module":
        return list(node.all_input_nodes)
    return [target for target in _targets(node) if isinstance(target, fx.Node)]


def _targets(node: fx.Node) -> list[Any]:
    target, first = node.target, [*node.args[:1], node.kwargs.get("input")]
    if spellings.role(node) == "bn":
        a = spellings.arguments(node)
        return [a.running_mean, a.running_var] if a.training else []
    if spellings.role(node):
        out = node.kwargs.get("out")
        return [spellings.arguments(node).input, out] if spellings.in_place(node) else [out]
    if isinstance(target, OpOverload):
        parameters = schema(target).arguments
        named = {**dict(zip((a.name for a in parameters), node.args)), **node.kwargs}
        return [named.get(a.name) for a in parameters if a.alias_info is not None and a.alias_info.is_write]
    if node.op == "call_method":
        return first if str(target).endswith("_") and not str(target).endswith("__") else []
    return _function_targets(node, first)


def _function_targets(node: fx.Node, first: list[Any]) -> list[Any]:
    name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", None) or "torch"
    if name in _WRITING_OPERATORS or (name.endswith("_") and not name.endswith("__")):
        return first
    if "batch_norm" in name or home.split(".")[0] not in _PURE_HOMES:
        return list(node.all_input_nodes)  # unknown: it may write anything that it is given
    return [node.kwargs.get("out"), *(first if _inplace_flag(node) else [])]


def _inplace_flag(node: fx.Node) -> bool:
    """True if a function of torch.nn.functional is called with inplace=True."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a function in C++ has no signature, and no such flag
        return False
    return bound.arguments.get("inplace") is True


def autocasts(graph: fx.Graph) -> bool:
    """True if a part of the graph may run under autocast."""
    return torch_compat.autocasts() or any(_is_named(node, "_enter_autocast") for node in graph.nodes)


def without_gradients(gm: fx.GraphModule) -> None:
    """Removes what turns gradients on and off from a graph whose results have none."""
    for node in list(gm.graph.nodes):
        if _is_named(node, "_set_grad_enabled"):
            gm.graph.erase_node(node)


def _is_named(node: fx.Node, name: str) -> bool:
    return getattr(node.target, "__name__", "") == name


class Modes:
    """The autocast regions of a graph, as their enter nodes, at each node."""

    def __init__(self, graph: fx.Graph):
        self.entered: dict[fx.Node, tuple[fx.Node, ...]] = {}
        current: tuple[fx.Node, ...] = ()
        for node in graph.nodes:
            if _is_named(node, "_enter_autocast"):
                current = (*current, node)
            elif _is_named(node, "_exit_autocast"):
                current = tuple(entered for entered in current if entered is not node.args[0])
            self.entered[node] = current

    @contextlib.contextmanager
    def at(self, node: fx.Node) -> Iterator[None]:
        """A context with the autocast state under which the node runs; the ambient state is the caller's."""
        with contextlib.ExitStack() as stack:
            for entered in self.entered[node]:
                device, dtype, enabled, cache = (*entered.args, None, None, None)[:4]
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cache))
            yield
