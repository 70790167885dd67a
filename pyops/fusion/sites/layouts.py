"""Runs a frozen graph in channels_last: values between sites keep that layout, and get the model's own where it shows.

A frozen convolution is fastest in channels_last. Where the model is NCHW, a value may have another layout as long as
nothing but operators that follow the layout of their input see it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ...core.graph_compat import fake_mode
from ...core.layout import memory_format
from . import spellings
from .call import Call, inline
from .effects import Modes, storage, value, written
from .rewrite import lower

# Operators that take any layout, whose values do not depend on it, and which return no view.
FOLLOWING = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.add, torch.sub,
    torch.mul, torch.cat, torch.sigmoid, torch.tanh, torch.relu, torch.prelu, F.relu, F.prelu,
    F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.softplus, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.dropout,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
    F.batch_norm, torch.conv2d, torch.conv_transpose2d, "add", "sub", "mul", "div", "sigmoid", "relu",
    "mean", "size", "dim",
}  # fmt: skip


def lower_sites(gm: fx.GraphModule, freeze: bool) -> None:
    """Replaces the calls of sites by the operators that they come to. For graphs without gradients."""
    _lower_in_channels_last(gm) if freeze else lower(gm)


def _lower_in_channels_last(gm: fx.GraphModule) -> None:
    """Replaces the calls of sites by operators, as rewrite.lower does, on channels_last values where that is free."""
    modes = Modes(gm.graph)
    others = [node for node in gm.graph.nodes if not isinstance(node.target, Call)]
    shared = {storage(target) for node in others for target in written(node)}  # a copy would miss the change
    actual: dict[fx.Node, Any] = {}  # nodes in another layout than the model's: their fake values
    restored: dict[fx.Node, fx.Node] = {}

    def in_its_layout(node: Any) -> Any:
        return actual.get(node, value(node))

    for node in list(gm.graph.nodes):
        joins = _joins_layouts(node, in_its_layout)
        if isinstance(node.target, Call):
            with modes.at(node):
                traced = node.target.traced([in_its_layout(tensor) for tensor in node.args])
            got, result = _like(value(traced.graph.output_node().args[0])), inline(gm.graph, node, traced)
        elif joins or any(used in actual for used in node.all_input_nodes):
            if joins:
                _join_in_channels_last(gm.graph, node, in_its_layout, actual)
            if node.target not in FOLLOWING or draws(node):
                _restore_inputs(gm.graph, node, actual, restored)
                continue
            with modes.at(node):
                result, got = node, _run(node, in_its_layout)
        else:
            continue
        if not _other_layout(got, value(result)):
            continue
        if isinstance(got, Tensor) and storage(result) in shared:
            _restore_everywhere(gm.graph, result)
        else:
            actual[result] = got
    gm.recompile()


def draws(node: fx.Node) -> bool:
    """True for dropout in training, which draws in the order of memory."""
    return spellings.role(node) == "dropout" and bool(spellings.arguments(node).training)


def _run(node: fx.Node, values: Callable[[Any], Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values)
    with fake_mode([values(used) for used in node.all_input_nodes]), torch.no_grad():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _like(fake: Tensor) -> Tensor:
    """A fake tensor of its own: calls of the same operators share theirs."""
    with fake_mode([fake]):
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)


def _joins_layouts(node: fx.Node, values: Callable[[Any], Any]) -> bool:
    """True for a torch.cat of maps of which most elements, and not all, are in channels_last: it would be NCHW."""
    if node.target is not torch.cat or not node.args or not isinstance(node.args[0], (list, tuple)):
        return False
    maps = [values(used) for used in node.args[0]]
    if any(not isinstance(one, Tensor) or one.dim() != 4 or not isinstance(one.numel(), int) for one in maps):
        return False
    last = [one.numel() for one in maps if memory_format(one) == torch.channels_last]
    return 0 < len(last) < len(maps) and 2 * sum(last) > sum(one.numel() for one in maps)


def _join_in_channels_last(
    graph: fx.Graph, node: fx.Node, values: Callable[[Any], Any], actual: dict[fx.Node, Any]
) -> None:
    """Copies the smaller part, so that neither the whole nor what follows is copied: ASPP's mean, for example."""
    for used in dict.fromkeys(node.args[0]):
        if memory_format(values(used)) != torch.channels_last:
            copy = _laid_out(graph, node, used, torch.channels_last)
            with fake_mode([values(used)]):
                actual[copy] = values(used).contiguous(memory_format=torch.channels_last)
            node.replace_input_with(used, copy)


def _other_layout(got: Any, wanted: Any) -> bool:
    if isinstance(got, (tuple, list)) and isinstance(wanted, (tuple, list)):
        return any(map(_other_layout, got, wanted))
    return isinstance(got, Tensor) and got.stride() != wanted.stride()


def _restore_inputs(
    graph: fx.Graph, node: fx.Node, actual: dict[fx.Node, Any], restored: dict[fx.Node, fx.Node]
) -> None:
    for used in list(node.all_input_nodes):
        if used in actual and isinstance(actual[used], Tensor):
            if used not in restored:
                restored[used] = _laid_out(graph, node, used, memory_format(value(used)))
            node.replace_input_with(used, restored[used])


def _laid_out(graph: fx.Graph, before: fx.Node, node: fx.Node, layout: torch.memory_format) -> fx.Node:
    """A copy of a node's value in a layout, entered before another node."""
    with graph.inserting_before(before):
        copy = graph.call_method("contiguous", (node,), {"memory_format": layout})
    copy.meta = dict(node.meta)
    return copy


def _restore_everywhere(graph: fx.Graph, node: fx.Node) -> None:
    copy = _laid_out(graph, node.next, node, memory_format(value(node)))
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
