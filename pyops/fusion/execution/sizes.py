"""Sizes of tensors in a graph: numbers in place of the tuples that hold them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from ..sites.effects import value


def separate_sizes(gm: fx.GraphModule) -> None:
    """Replaces each tuple of sizes by its numbers, which can pass from one part to another."""
    for node in list(gm.graph.nodes):
        sizes = value(node)
        if node.op == "output" or not isinstance(sizes, tuple) or not all(map(_is_number, sizes)):
            continue
        users = list(node.users)
        numbers = tuple(_numbers_of(gm.graph, node, sizes))
        for user in users:
            user.args = fx.map_arg(user.args, lambda one: numbers if one is node else one)  # noqa: B023
            user.kwargs = fx.map_arg(user.kwargs, lambda one: numbers if one is node else one)  # noqa: B023
    gm.graph.eliminate_dead_code(lambda node: not isinstance(value(node), tuple) or bool(node.users))
    gm.recompile()


def _numbers_of(graph: fx.Graph, node: fx.Node, sizes: tuple) -> Iterator[Any]:
    last = node
    for index, size in enumerate(sizes):
        if isinstance(size, int):
            yield size
            continue
        with graph.inserting_after(last):
            last = graph.call_function(operator.getitem, (node, index))
        last.meta["example_value"] = size
        yield last


def _is_number(size: Any) -> bool:
    return isinstance(size, (int, torch.SymInt))
