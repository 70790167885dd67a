"""A fused model inside another compiler: a part of that compiler's graph, whose sites are replaced before it reads it.

A compiled function there would be traced through, and never called. torch.onnx, which knows no operators of ours, and
tracers other than Dynamo and torch.export get the plain model.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ..core import dynamo_compat, graph_compat
from ..core.torch_compat import constant, without_function_modes
from .compiler import Compiler, fuse_graph, rewritten
from .execution import training
from .report import Graph
from .sites.effects import without_gradients
from .sites.layouts import lower_sites

if TYPE_CHECKING:
    from .state import State

_states: weakref.WeakValueDictionary[int, State] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def register(state: State) -> int:
    """A number by which traced code names a fused model's state: Dynamo passes numbers to what it does not trace."""
    number = next(_numbers)
    _states[number] = state
    return number


def run(state: State, args: tuple, kwargs: dict) -> Any:
    """The model, traced by another compiler."""
    if torch.compiler.is_dynamo_compiling():
        _enter()
        result = state.model(*args, **kwargs)
        _leave(state.number)
        return result
    if torch.compiler.is_exporting() and not torch.onnx.is_in_onnx_export():
        return _exported(state, args, kwargs)
    return state.model(*args, **kwargs)


class _Rewriting:
    """The compiler of a graph that Dynamo is tracing, behind the replacement of sites.

    parts: the fused models in the graph, and the nodes of each.
    """

    def __init__(self, compiler_fn: Callable[..., Any]):
        self.compiler_fn, self.__name__ = compiler_fn, getattr(compiler_fn, "__name__", type(compiler_fn).__name__)
        self.entered: list[set[fx.Node]] = []
        self.parts: list[tuple[int, set[fx.Node]]] = []

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        current = {node: node for node in gm.graph.nodes}  # traced node -> the same in the graph as it is now
        for number, nodes in self.parts:
            if state := _states.get(number):
                copies = _replace(gm, {current[node] for node in nodes if node in current}, state.compiler)
                current = {node: copies[now] for node, now in current.items() if now in copies}
        return self.compiler_fn(gm, inputs)


@constant
def rewrites() -> bool:
    """True while Dynamo traces a graph whose sites will be replaced."""
    try:
        compiler = dynamo_compat.output_graph().compiler_fn
    except AttributeError:  # Dynamo traces nothing
        return False
    return getattr(compiler, "rewrites", False) or (isinstance(compiler, _Rewriting) and bool(compiler.entered))


@constant  # Dynamo runs it when it comes to the call
def _enter() -> bool:
    output = dynamo_compat.output_graph()
    if not isinstance(output.compiler_fn, _Rewriting):
        output.compiler_fn = _Rewriting(output.compiler_fn)
    output.compiler_fn.entered.append(set(output.graph.nodes))
    return True


@constant
def _leave(number: int) -> bool:
    output = dynamo_compat.output_graph()
    if isinstance(output.compiler_fn, _Rewriting) and output.compiler_fn.entered:  # otherwise the graph broke inside
        output.compiler_fn.parts.append((number, set(output.graph.nodes) - output.compiler_fn.entered.pop()))
    return True


def _replace(gm: fx.GraphModule, nodes: set[fx.Node], compiler: Compiler) -> dict[fx.Node, fx.Node]:
    """Replaces those sites that consist of the given nodes; leaves the graph as it is if that fails.

    Returns the graph's nodes, and what they are now.
    """
    options, record = compiler.options._replace(compiled=True), Graph()
    try:
        copies: dict[fx.Node, fx.Node] = {}
        copy = training.copied(gm, copies)
        rewritten(copy, options, record, {}, {copies[node] for node in nodes if node in copies})
        if not training.has_gradients(copy):
            without_gradients(copy)
            lower_sites(copy, options.freeze)
    except Exception as error:
        warnings.warn(f"atrous.fuse: a fused model inside torch.compile runs unfused: {error}", stacklevel=2)
        return {node: node for node in gm.graph.nodes}
    compiler.report.graphs.append(record)
    for node, same in copies.items():
        graph_compat.copy_source(node, same)
    gm.graph = copy.graph
    return copies


def _exported(state: State, args: tuple, kwargs: dict) -> Any:
    """The model while torch.export traces it with fake tensors: its graph is traced apart, rewritten and run.

    In training it stays the model's own graph, since the program's operators need gradients, which ours have none of.
    """
    if state.model.training:
        return state.model(*args, **kwargs)
    options = state.compiler.options
    gm, tensors, finish = graph_compat.traced_module(state.model, args, kwargs)
    with without_function_modes():  # torch.export's would record the no_grad() of our own work
        fuse_graph(gm, backend=options.backend, freeze=options.freeze, report=state.compiler.report)
    return finish(gm(*tensors))
