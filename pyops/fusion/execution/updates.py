"""Changes of inputs, taken out of a graph: running statistics and batch counters of all its BatchNorms at once."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ...core import graph_compat
from ...core.torch_compat import add_to_each, lerp_each
from ..sites.call import Call
from ..sites.effects import value


class Running(NamedTuple):
    """The running statistics of one BatchNorm: their places among the graph's inputs."""

    mean: int
    var: int
    momentum: float
    checkpointed: bool


class Updates:
    """Built from a graph, whose sites then return their batch statistics behind the graph's own outputs.

    running: one for each pair of batch statistics. counters: the place of each num_batches_tracked -> how often it is
    counted, and how often in checkpointed regions.
    Raises ValueError if the graph reads running statistics or counters, which would be old.
    """

    def __init__(self, gm: fx.GraphModule):
        self.inputs = {node: i for i, node in enumerate(n for n in gm.graph.nodes if n.op == "placeholder")}
        self.running: list[Running] = []
        self.counters: dict[int, tuple[int, int]] = {}
        output, statistics = gm.graph.output_node(), []
        for node in list(gm.graph.nodes):
            if counts(node):
                place = self.inputs[node.args[0]]
                total, inside = self.counters.get(place, (0, 0))
                self.counters[place] = total + 1, inside + bool(graph_compat.region_tags(node))
                gm.graph.erase_node(node)
            elif isinstance(node.target, Call):
                node.target = node.target.for_joint_graph()
                statistics += self._defer(gm.graph, node) if node.target.deferred else []
        for node, place in self.inputs.items():
            if place in self.written and not all(map(_defers, node.users)):
                raise ValueError(f"{node.name}: the graph reads it besides updating it")
        output.args = ((*output.args[0], *statistics),)
        gm.recompile()

    @property
    def written(self) -> set[int]:
        """The places of the inputs that apply() changes."""
        return {place for one in self.running for place in one[:2]} | self.counters.keys()

    def _defer(self, graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
        call, tensors = node.target, dict(zip(node.target.names, node.args))
        with graph.inserting_after(node):
            y, mean, var = (graph.call_function(operator.getitem, (node, i)) for i in range(3))
        y.meta = dict(node.meta)
        node.meta.pop("example_value", None)  # it was y's; the tags of a checkpointed region stay
        node.replace_all_uses_with(y, delete_user_cb=lambda user: user not in (y, mean, var))
        # torch then changes nothing; a group of processes has values elsewhere
        empty = call.group is None and graph_compat.hint(value(y).numel()) == 0
        if tensors.get("mean") is None or empty:
            return []
        places = self.inputs[tensors["mean"]], self.inputs[tensors["var"]]
        self.running.append(Running(*places, call.momentum, bool(graph_compat.region_tags(node))))
        return [mean, var]

    def repeated(self, statistics: Sequence[Tensor]) -> list[Tensor | None]:
        """The statistics that apply(again=True) reads, those of checkpointed regions; None for the others."""
        return [one if self.running[i // 2].checkpointed else None for i, one in enumerate(statistics)]

    @torch.no_grad()
    def apply(self, args: Sequence[Any], statistics: Sequence[Any], again: bool = False) -> None:
        """running = (1 - momentum) * running + momentum * batch, and counter += 1.

        again: for those of checkpointed regions only, whose second run changes them once more.
        """
        counted = {place: numbers[again] for place, numbers in self.counters.items() if numbers[again]}
        if counted:
            add_to_each([args[place] for place in counted], list(counted.values()))
        groups: dict[float, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for one, batch in zip(self.running, zip(statistics[::2], statistics[1::2])):
            if one.checkpointed or not again:
                groups[one.momentum] += zip((args[one.mean], args[one.var]), batch)
        for momentum, pairs in groups.items():
            _lerp(pairs, momentum)


def _lerp(pairs: list[tuple[Tensor, Tensor]], momentum: float) -> None:
    running, batch = zip(*pairs)
    if all(r.dtype == b.dtype for r, b in pairs) and len(set(map(id, running))) == len(running):
        lerp_each(running, batch, momentum)
        return
    for r, b in pairs:  # a wider dtype, rounded once; or a BatchNorm that the model calls twice
        r.copy_(torch.lerp(r.to(b.dtype), b, momentum))


def counts(node: fx.Node) -> bool:
    """True for BatchNorm's num_batches_tracked.add_(1)."""
    if node.op != "call_method" or node.target != "add_" or node.args[1:] != (1,) or node.users:
        return False
    counter = node.args[0]
    return isinstance(counter, fx.Node) and counter.op == "placeholder" and not value(counter).requires_grad


def _defers(node: fx.Node) -> bool:
    return isinstance(node.target, Call) and node.target.deferred
