"""A training graph in parts, one behind the other, where an output depends on another one.

Autograd connects the results of different functions, and not those of one: a graph that returns a feature and what is
computed from it would lose the gradient between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx.passes.split_module import split_module

from ...core import graph_compat
from ..sites.effects import value
from .training import needs_gradient, outputs

Compile = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]


def in_parts(gm: fx.GraphModule, inputs: Sequence[Any], compile: Compile) -> Callable[..., Any] | None:
    """The graph as a function that runs its parts in the order of its nodes; None if no output depends on another.

    compile: makes a function of the graph of a part and its fake inputs.
    """
    numbers = _numbers(gm)
    if not any(numbers.values()):
        return None
    places = {node.name: (node, given) for node, given in zip(gm.graph.find_nodes(op="placeholder"), inputs)}
    origins = {node.name: node for node in gm.graph.nodes}
    whole = split_module(gm, gm, numbers.__getitem__)
    for node in whole.graph.find_nodes(op="call_module"):
        part: Any = whole.get_submodule(node.target)
        fakes = []
        for place in part.graph.find_nodes(op="placeholder"):
            if place.name in places:
                graph_compat.copy_source(places[place.name][0], place)
                fakes.append(places[place.name][1])
            else:
                fakes.append(_leaf(value(origins[place.name])))
        node.op, node.target = "call_function", Part(node.target, part, fakes, compile)
    whole.recompile()
    return whole.forward


class Part:
    """The compiled graph of a part. It returns what the graph does: a tuple, one value, or nothing."""

    def __init__(self, name: str, part: fx.GraphModule, fakes: Sequence[Any], compile: Compile):
        self.__name__ = self.__qualname__ = name
        output = part.graph.output_node()
        self.alone = not isinstance(output.args[0], tuple)
        if self.alone:
            output.args = ((output.args[0],) if output.args[0] is not None else (),)
            part.recompile()
        self.run = compile(part, fakes)

    def __call__(self, *args: Any) -> Any:
        results = self.run(*args)
        return (results[0] if results else None) if self.alone else results


def _numbers(gm: fx.GraphModule) -> dict[fx.Node, int]:
    """node -> the number of its part. A part ends before the first node that computes an output from one of the part's
    own outputs."""
    returned = {node for node in outputs(gm) if isinstance(node, fx.Node) and needs_gradient(value(node))}
    leading: set[fx.Node] = set()  # to a returned node
    for node in reversed(gm.graph.nodes):
        if any(user in returned or user in leading for user in node.users):
            leading.add(node)
    ends = {node for node in returned & leading if node.op != "placeholder"}
    numbers: dict[fx.Node, int] = {}
    number = 0
    for node in gm.graph.nodes:
        differentiable = needs_gradient(value(node)) and (node in returned or node in leading)
        if differentiable and any(numbers[used] == number for used in ends.intersection(node.all_input_nodes)):
            number += 1
        numbers[node] = number
    return numbers


def _leaf(fake: Any) -> Any:
    return fake.detach().requires_grad_(fake.requires_grad) if isinstance(fake, Tensor) else fake
