"""Changes of inputs, moved behind a graph: running statistics and batch counters of all its BatchNorms at once."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from .call import Call
from .effects import value


@dataclass
class Updates:
    """means, vars: the places of the running statistics among the inputs. momenta: one for each pair. counters: the
    places of num_batches_tracked. outputs: the number of the graph's own outputs; batch statistics follow them.
    """

    means: list[int] = field(default_factory=list)
    vars: list[int] = field(default_factory=list)
    momenta: list[float] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)
    outputs: int = 0

    @property
    def written(self) -> set[int]:
        return {*self.means, *self.vars, *self.counters}

    @staticmethod
    def counts(node: fx.Node) -> bool:
        """True for BatchNorm's num_batches_tracked.add_(1)."""
        if node.op != "call_method" or node.target != "add_" or node.args[1:] != (1,) or node.users:
            return False
        counter = node.args[0]
        return isinstance(counter, fx.Node) and counter.op == "placeholder" and not value(counter).requires_grad

    @classmethod
    def take_from(cls, gm: fx.GraphModule) -> Updates:
        """Makes the graph's sites return their batch statistics as outputs, and removes its counters."""
        inputs = {node: i for i, node in enumerate(n for n in gm.graph.nodes if n.op == "placeholder")}
        output = next(iter(reversed(gm.graph.nodes)))
        updates, statistics = cls(outputs=len(output.args[0])), []
        for node in list(gm.graph.nodes):
            if cls.counts(node):
                updates.counters.append(inputs[node.args[0]])
                gm.graph.erase_node(node)
            elif isinstance(node.target, Call):
                node.target = node.target.for_joint_graph()
                statistics += updates._defer(gm.graph, node, inputs) if node.target.deferred else []
        output.args = ((*output.args[0], *statistics),)
        gm.recompile()
        return updates

    def _defer(self, graph: fx.Graph, node: fx.Node, inputs: dict[fx.Node, int]) -> list[fx.Node]:
        call, tensors = node.target, dict(zip(node.target.names, node.args))
        with graph.inserting_after(node):
            y, mean, var = (graph.call_function(operator.getitem, (node, i)) for i in range(3))
        y.meta = dict(node.meta)
        node.meta.pop("example_value", None)  # it was y's; the tags of a checkpointed region stay
        node.replace_all_uses_with(y, delete_user_cb=lambda user: user not in (y, mean, var))
        if tensors.get("mean") is None:
            return []
        self.means.append(inputs[tensors["mean"]])
        self.vars.append(inputs[tensors["var"]])
        self.momenta.append(call.momentum)
        return [mean, var]

    def behind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, followed by the updates."""
        groups: dict[float, list[int]] = defaultdict(list)
        for index, momentum in enumerate(self.momenta):
            groups[momentum].append(index)
        if not (groups or self.counters):
            return function

        def run(*args: Any) -> Any:
            results = function(*args)
            if self.counters:
                torch._foreach_add_([args[i] for i in self.counters], 1)
            for momentum, indices in groups.items():
                self._lerp(args, results[self.outputs :], momentum, indices)
            return results[: self.outputs]

        return run

    @torch.no_grad()
    def _lerp(self, args: tuple, statistics: tuple[Tensor, ...], momentum: float, indices: list[int]) -> None:
        running = [args[places[i]] for places in (self.means, self.vars) for i in indices]
        batch = [statistics[2 * i + k] for k in range(2) for i in indices]
        if all(r.dtype == b.dtype for r, b in zip(running, batch)) and len(set(map(id, running))) == len(running):
            torch._foreach_lerp_(running, batch, momentum)
            return
        for r, b in zip(running, batch):  # a wider dtype, rounded once; or a BatchNorm that the model calls twice
            r.copy_(torch.lerp(r.to(b.dtype), b, momentum))
