"""A training graph in parts, one behind the other, where an output depends on another one.

Autograd connects the results of different functions, and not those of one: a graph that returns a feature and what is
computed from it would lose the gradient between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.split_module import split_module

from ...core import graph_compat
from ...core.torch_compat import tree_leaves
from ..sites.effects import storage, value, written
from .sizes import separate_sizes
from .training import needs_gradient, outputs, written_in_place

Compile = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]


class NotInParts(Exception):
    """An output of the graph depends on another one, in a way that cannot be cut; the message says why."""


def in_parts(gm: fx.GraphModule, inputs: Sequence[Any], compile: Compile) -> Callable[..., Any] | None:
    """The graph as a function that runs its parts in the order of its nodes; None if no output depends on another.

    compile: makes a function of the graph of a part and its fake inputs. Raises NotInParts.
    """
    ends = _Ends(gm)
    if len(ends.returned) > 1:
        ends.check_writes()
    if not any(ends.numbers().values()):
        return None
    separate_sizes(gm)
    numbers = ends.numbers()
    places = {node.name: (node, given) for node, given in zip(gm.graph.find_nodes(op="placeholder"), inputs)}
    origins = {node.name: node for node in gm.graph.nodes}
    whole, last = split_module(gm, gm, numbers.__getitem__), max(numbers.values())
    views = f"submod_{last}" if last in map(numbers.get, ends.views) else ""
    for node in whole.graph.find_nodes(op="call_module"):
        part: Any = whole.get_submodule(node.target)
        fakes = []
        for place in part.graph.find_nodes(op="placeholder"):
            if place.name in places:
                graph_compat.copy_source(places[place.name][0], place)
                fakes.append(places[place.name][1])
            else:
                fakes.append(_leaf(value(origins[place.name])))
        how = _as_it_is if node.target == views else compile
        node.op, node.target = "call_function", Part(node.target, part, fakes, how)
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


class _Ends:
    """The outputs of a graph at which a part may end, the values that share their memory, and returned views."""

    def __init__(self, gm: fx.GraphModule):
        self.gm = gm
        self.returned = {node for node in outputs(gm) if isinstance(node, fx.Node) and _differentiable(node)}
        self.memories = {storage(node) for node in self.returned if node.op != "placeholder"} - {None}
        self.views: set[fx.Node] = set()  # that are only returned: autograd has them from outside of its functions
        for node in reversed(gm.graph.nodes):
            if _is_view(node) and all(user.op == "output" or user in self.views for user in node.users):
                self.views.add(node)

    def numbers(self) -> dict[fx.Node, int]:
        """node -> the number of its part. A part ends before the first node that computes an output from one of the
        part's own outputs. Returned views are the last; another view is in the part that reads it first, since a part
        that returns a view of what it is given is not compiled."""
        leading: set[fx.Node] = set()  # to an output
        for node in reversed(self.gm.graph.nodes):
            if node.op != "placeholder" and any(user in self.returned or user in leading for user in node.users):
                leading.add(node)
        numbers: dict[fx.Node, int] = {}
        ended: dict[int | None, int] = {}  # memory -> the part in which an output there is
        number = 0
        for node in self.gm.graph.nodes:
            leads = (node in leading or node in self.returned) and node not in self.views and _differentiable(node)
            mine = storage(node)
            read = {storage(used) for used in node.all_input_nodes} - {mine, None}
            if leads and any(ended.get(memory) == number for memory in read):
                number += 1
            numbers[node] = number
            if node in self.returned and node.op != "placeholder":
                ended[mine] = number
        for node in reversed(self.gm.graph.nodes):
            if node in self.views:
                numbers[node] = number + 1
            elif node.users and node not in self.returned and _is_view(node):
                numbers[node] = max(numbers[node], min(numbers[user] for user in node.users))
        return numbers

    def check_writes(self) -> None:
        """Raises NotInParts if a value that depends on an output is written into other memory, which is read later by
        another node than the result of the write."""
        derived: set[fx.Node] = set()
        results: dict[fx.Node, set[fx.Node]] = {}  # such a write -> what is computed from its result
        for node in self.gm.graph.nodes:
            for write, behind in results.items():
                memory = {storage(target) for target in written_in_place(write)}
                if any(storage(used) in memory and used not in behind for used in node.all_input_nodes):
                    raise NotInParts(f"{write.name} writes what depends on an output into memory that is read later")
                if behind.intersection(node.all_input_nodes):
                    behind.add(node)
            sources = [u for u in node.all_input_nodes if u in derived or storage(u) in self.memories]
            if sources:
                derived.add(node)
            memory = {storage(target) for target in written_in_place(node) if _differentiable(target)}
            if memory and not memory.issuperset(map(storage, sources)):
                results[node] = {node}


def _is_view(node: fx.Node) -> bool:
    """True for a node whose value is in an input's memory, with a gradient if the input has one, or is detached."""
    if node.op in ("placeholder", "get_attr", "output") or storage(node) is None or list(written(node)):
        return False
    if node.target in ("detach", torch.detach):
        return True
    bases = [used for used in node.all_input_nodes if storage(used) == storage(node)]
    return any(needs_gradient(value(base)) == needs_gradient(value(node)) for base in bases)


def _differentiable(node: Any) -> bool:
    return any(map(needs_gradient, tree_leaves(value(node))))


def _as_it_is(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    return gm.forward


def _leaf(fake: Any) -> Any:
    return fake.detach().requires_grad_(fake.requires_grad) if isinstance(fake, Tensor) else fake
