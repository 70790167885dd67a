"""Predicates on fx nodes: convolution, BatchNorm, add and activation, as module, function or method."""

from __future__ import annotations

import inspect
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..core import activation
from ..core.torch_compat import has_hooks
from ..nn import FrozenConv2d

KINDS = {"conv": (nn.Conv2d, FrozenConv2d), "bn": (nn.BatchNorm2d, nn.SyncBatchNorm), "identity": (nn.Identity,)}
ADDS = {operator.add: False, operator.iadd: True, torch.add: False, "add": False, "add_": True}  # in place?
ACTS = {F.relu: "relu", torch.relu: "relu", F.relu_: "relu", torch.relu_: "relu", "relu": "relu", "relu_": "relu",
        F.leaky_relu: "leaky_relu", F.leaky_relu_: "leaky_relu", F.rrelu: "rrelu", F.rrelu_: "rrelu"}  # fmt: skip
PRELU = (torch.prelu, F.prelu, "prelu")
NAMES = {kind.module: name for name, kind in activation.ACTIVATIONS.items()}


def target(node: fx.Node) -> str:
    """Returns the path of a module or tensor, or the name of a method."""
    return str(node.target)


def uses(node: fx.Node) -> int:
    """Returns the number of uses of a value; add(x, x) uses x twice."""
    used = []
    for user in node.users:
        fx.node.map_arg((user.args, user.kwargs), lambda n: used.append(n) if n is node else None)
    return len(used)


def not_fusible(path: str, module: nn.Module) -> str:
    """Returns the reason why a fused call cannot replace the module; "" if it can."""
    exact = (*(kind for kinds in KINDS.values() for kind in kinds), *NAMES)
    if type(module) not in exact:
        base = next(kind for kind in exact if isinstance(module, kind))
        return f"{path} is a {type(module).__name__}, not exactly {base.__name__}"
    if has_hooks(module):
        return f"{path} has hooks"
    if "forward" in vars(module):
        return f"{path} has a forward of its own"
    return ""


def slope(node: fx.Node):
    """Returns the slope of a functional activation in the traced mode, or None if it is not a constant."""
    name = ACTS.get(node.target)
    arguments = [*node.args[1:], *(v for k, v in node.kwargs.items() if k != "input")]
    if name is None or not node.args or any(isinstance(a, fx.Node) for a in arguments):
        return None
    if name == "relu":
        return "relu"
    bound = inspect.signature(getattr(F, name)).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    if name == "leaky_relu":
        return float(bound.arguments["negative_slope"])
    lower, upper = bound.arguments["lower"], bound.arguments["upper"]
    return (lower, upper) if bound.arguments["training"] else (lower + upper) / 2


def operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """Returns the two operands of a sum; () if one is a number or the sum is scaled (alpha)."""
    scaled = any(value != 1 or key != "alpha" for key, value in node.kwargs.items() if key not in ("input", "other"))
    values = (*node.args, *(node.kwargs[key] for key in ("input", "other") if key in node.kwargs))
    nodes = tuple(value for value in values if isinstance(value, fx.Node))
    return nodes if len(nodes) == len(values) == 2 and not scaled else ()


def name_of(node: fx.Node) -> str:
    return target(node) if node.op == "call_module" else node.name
