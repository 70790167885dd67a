"""Chooses what a joint graph keeps: outputs of convolutions, from which its backward computes epilogues again.

An epilogue whose residual would have to be computed again first is kept.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from ...core import graph_compat
from ...core.torch_compat import OpOverload
from ...ops import schemas

KEPT = (
    "aten::convolution", "aten::randint", "_statistics", "_conv_statistics", "_conv_epilogue", "_winograd_epilogue",
    "wait_tensor",
)  # fmt: skip
RESIDUAL = tuple(schemas()["_epilogue"].partition("(")[2].split(", ")).index("Tensor? residual=None")


def choose_kept(joint: fx.GraphModule) -> None:
    recomputed: set[fx.Node] = set()
    for node in list(joint.graph.nodes):
        if graph_compat.is_backward(node) and node.op == "call_function":
            graph_compat.keep(node, False)  # it may depend on inputs alone, as a weight that a gradient scales
            continue
        if not isinstance(node.target, OpOverload):
            continue
        name = node.target.name()
        residual = node.args[RESIDUAL] if len(node.args) > RESIDUAL else None
        if name.endswith("::_epilogue"):
            kept = residual in recomputed or _reads_sign(node)
            graph_compat.keep(node, kept)
            recomputed |= set() if kept else {node}
        elif name.endswith("::_statistics_epilogue"):
            graph_compat.keep(node, True)
            recomputed |= set() if residual in recomputed else _recompute_output(joint.graph, node)
        elif name in KEPT or name.partition("::")[2] in KEPT:
            graph_compat.keep(node, True)


def _reads_sign(y: fx.Node) -> bool:
    """True if the backward of this epilogue reads its result in place of its input; see autograd/sign.py."""
    return any(
        isinstance(user.target, OpOverload)
        and user.target.name().endswith("::_epilogue_gradients")
        and user.args[1] is y
        for user in y.users
    )


def _recompute_output(graph: fx.Graph, node: fx.Node) -> set[fx.Node]:
    """Makes the backward use another y, computed from z, mean and var alone, without the pass for the statistics."""
    results = {user.args[1]: user for user in node.users if user.target is operator.getitem}
    if set(results) != {0, 1, 2}:
        return set()
    y = results[0]
    namespace = getattr(torch.ops, node.target.namespace)  # type: ignore[union-attr]
    with graph.inserting_after(max(results.values(), key=list(graph.nodes).index)):
        arguments = (node.args[0], results[1], results[2], *node.args[3:])
        again = graph.call_function(namespace._epilogue_again.default, arguments)
    again.meta = {"val": y.meta["val"], **graph_compat.region_tags(y)}
    graph_compat.keep(again, False)
    y.replace_all_uses_with(again, delete_user_cb=graph_compat.is_backward)
    return {y}
