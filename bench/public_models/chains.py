"""Counts conv -> BatchNorm -> (add) -> activation in a model by itself, for comparison with fuse()'s report.

The model runs once in eager mode under a TorchDispatchMode, so this sees aten's operators: neither Dynamo's graph nor
the table of spellings that fuse() reads has a part in it.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACTIVATIONS = ("relu", "leaky_relu", "_prelu_kernel", "prelu", "rrelu", "rrelu_with_noise")
IDENTITIES = ("detach", "alias", "clone", "contiguous")


@dataclass
class Op:
    """One call of an operator. users: the calls that read its result, an output of the model counts as one."""

    name: str
    users: list[Op] = field(default_factory=list)
    weight: int = 0  # identifies the weight of a convolution
    two_d: bool = False

    @property
    def only_user(self) -> Op | None:
        return self.users[0] if len(self.users) == 1 else None


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.maker: dict[int, Op] = {}
        self.alive: list[Any] = []  # an id names a tensor only as long as it lives

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        op = Op(func._schema.name.split("::")[1].rstrip("_"))
        if "convolution" in op.name and args[0].dim() == 4 and not args[6]:
            op.two_d, op.weight = True, id(args[1])
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and id(tensor) in self.maker:
                self.maker[id(tensor)].users.append(op)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.maker[id(tensor)] = op
        self.ops.append(op)
        self.alive.append((args, kwargs, result))
        return result


def recorded(model: nn.Module, args: tuple) -> list[Op]:
    recorder = Recorder()
    with torch.no_grad(), recorder:
        outputs = model(*args)
    for tensor in tree_leaves(outputs):
        if id(tensor) in recorder.maker:
            recorder.maker[id(tensor)].users.append(Op("output"))
    return recorder.ops


def _next(op: Op) -> Op | None:
    """The only user of an operator's result, past identities."""
    user = op.only_user
    while user is not None and user.name in IDENTITIES:
        user = user.only_user
    return user


def activation_of(conv: Op) -> Op | None:
    """The activation that one call could apply to a convolution and its BatchNorm."""
    bn = _next(conv)
    if bn is None or "batch_norm" not in bn.name:
        return None
    user = _next(bn)
    if user is not None and user.name == "add":
        user = _next(user)
    return user if user is not None and user.name in ACTIVATIONS else None


def count(model: nn.Module, args: tuple) -> dict[str, Any]:
    """convolutions: 2-D ones, a layer that is called twice once. activated: for each activation that stands behind a
    convolution and its BatchNorm, the paths of the convolutions, two if it follows the sum of two of them.
    """
    paths = {id(p): name.rpartition(".")[0] for name, p in model.named_parameters()}
    convs = [op for op in recorded(model, args) if op.two_d]
    path = {id(op): paths.get(op.weight, f"call {index}") for index, op in enumerate(convs)}
    groups = collections.defaultdict(set)
    for op in convs:
        if (act := activation_of(op)) is not None:
            groups[id(act)].add(path[id(op)])
    activated = sorted({tuple(sorted(group)) for group in groups.values()})
    return {"convolutions": len(set(path.values())), "activated": activated}
