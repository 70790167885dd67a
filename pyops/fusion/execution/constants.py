"""The part of a frozen graph that depends on parameters and buffers alone: computed once, and again when they change.

It belongs to the frozen model and not to the graph, since torch.compile runs one graph for every instance of a class.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...core.streams import wait_for
from ...core.torch_compat import OpOverload, schema
from ..sites.effects import storage, written

VERSION = operator.attrgetter("_version")  # the number of in-place changes of a tensor
PREPARED = "prepared_"  # begins the names of the inputs that stand for prepared values


class Prepared:
    """The values that a function computes from source tensors."""

    def __init__(self, compute: Callable[..., Sequence[Tensor]], sources: tuple[Tensor, ...]):
        self.compute, self.sources, self.versions = compute, sources, -1
        self.counting = [source for source in sources if not source.is_inference()]  # others count no changes
        self.values: list[Tensor] = []

    def refresh(self, versions: int) -> None:
        """Computes the values, into the memory of the former ones: a CUDA graph may read it."""
        with torch.inference_mode(False), torch.no_grad():
            values = list(self.compute(*self.sources))
        for old, new in zip(self.values, values):
            if not new.is_mkldnn:
                old.copy_(new)
        self.values = [new if new.is_mkldnn else old for old, new in zip(self.values, values)] or values
        wait_for(self.values)  # the next call may be on another stream
        self.versions = versions


class Store:
    """The prepared values of one model."""

    def __init__(self) -> None:
        # A graph keeps its values alive, and they keep their sources: ids stay unique
        self.known: weakref.WeakValueDictionary[tuple, Prepared] = weakref.WeakValueDictionary()
        self.lock = threading.RLock()

    def find(self, code: str, compute: Callable[..., Sequence[Tensor]], sources: tuple[Tensor, ...]) -> Prepared:
        """Graphs that compute the same from the same tensors share the values."""
        key = (code, *map(id, sources))
        with self.lock:
            return self.known.setdefault(key, Prepared(compute, sources))

    def clear(self) -> None:
        with self.lock:
            for prepared in self.known.values():
                prepared.versions = -1


class FrozenGraph:
    """A graph whose last inputs are prepared values. sources: the arguments that these depend on; rest: those that the
    graph reads besides."""

    def __init__(
        self, forward: Callable[..., Any], constant: fx.GraphModule, sources: list[int], rest: list[int], store: Store
    ):
        self.forward, self.constant, self.store = forward, constant, store
        self.sources, self.rest = _picker(sources), _picker(rest)
        self.prepared: Prepared | None = None

    def __call__(self, *args: Any) -> Any:
        sources, prepared = self.sources(args), self.prepared
        if prepared is None or not all(map(operator.is_, sources, prepared.sources)):
            prepared = self.prepared = self.store.find(self.constant.code, self.constant.forward, sources)
        versions = sum(map(VERSION, prepared.counting))
        if versions != prepared.versions:
            with self.store.lock:
                if versions != prepared.versions:
                    prepared.refresh(versions)
        return self.forward(*self.rest(args), *prepared.values)


def _picker(places: list[int]) -> Callable[[tuple], tuple]:
    """A function that returns the arguments at these places."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    return lambda args: tuple(args[place] for place in places)


def frozen(
    gm: fx.GraphModule, constants: set[fx.Node], store: Store, finish: Callable[[fx.GraphModule], Callable[..., Any]]
) -> Callable[..., Any]:
    """The function that runs a graph, with everything that depends on the constants alone computed beforehand.

    constants: the placeholders of parameters and buffers. finish: makes a function of the rest of the graph.
    """
    known, inside = set(constants), []
    for node in gm.graph.nodes:
        if _pure(node) and all(used in known for used in node.all_input_nodes):
            known.add(node)
            inside.append(node)
    used = [node for node in inside if any(user not in known for user in node.users)]
    if not used:
        return finish(gm)
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    sources = [node for node in inputs if node in constants and any(user in known for user in node.users)]
    for node in (*sources, *inside):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in used))
    constant = fx.GraphModule(gm, graph)
    _replace_by_inputs(gm, inputs[-1], used, inside)
    _copy_what_is_seen(gm)
    rest = [node for node in inputs if node.users]
    for node in inputs:
        if not node.users:
            gm.graph.erase_node(node)
    gm.recompile()
    return FrozenGraph(finish(gm), constant, list(map(inputs.index, sources)), list(map(inputs.index, rest)), store)


def _copy_what_is_seen(gm: fx.GraphModule) -> None:
    """Copies prepared values that the graph returns or writes: the next call needs them as they are."""
    nodes = list(gm.graph.nodes)
    seen = {storage(target) for node in nodes for target in written(node)} | {
        storage(result) for result in nodes[-1].all_input_nodes
    }
    for node in nodes:
        if node.op == "placeholder" and str(node.target).startswith(PREPARED) and storage(node) in seen:
            with gm.graph.inserting_before(next(n for n in nodes if n.op != "placeholder")):
                copy = gm.graph.call_function(torch.ops.aten.clone.default, (node,))
            copy.meta = dict(node.meta)
            node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
    gm.recompile()


def _pure(node: fx.Node) -> bool:
    """True for an operator whose result depends on its tensors alone; one without tensors draws or counts."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload) or not node.all_input_nodes:
        return False
    return not schema(target).is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _replace_by_inputs(gm: fx.GraphModule, last: fx.Node, used: list[fx.Node], inside: list[fx.Node]) -> None:
    for node in used:
        with gm.graph.inserting_after(last):
            last = gm.graph.placeholder(PREPARED + node.name)
        last.meta = dict(node.meta)
        node.replace_all_uses_with(last)
    for node in reversed(inside):
        gm.graph.erase_node(node)
    gm.recompile()
