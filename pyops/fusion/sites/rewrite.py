"""Replaces the sites of a graph by calls, and the calls of a graph without gradients by the operators they come to."""

from __future__ import annotations

from torch import fx

from ...core import graph_compat
from ...core.errors import summary
from ...core.layout import memory_format
from .call import Call, Options, inline
from .chains import Chain
from .effects import Modes, value


def replace_sites(gm: fx.GraphModule, chains: list[Chain], options: Options) -> None:
    """Replaces each site by a node that calls a Call. Those that cannot be replaced get a refusal."""
    modes = Modes(gm.graph)
    became: dict[fx.Node | None, fx.Node] = {}  # the last node of a chain -> its call
    traces: dict[str, fx.GraphModule] = {}
    for chain in chains:
        if chain.fusible:
            call = Call(chain, options._replace(freeze=False), became.get(chain.residual, chain.residual), traces)
            chain.refusal = _refusal(call, chain, modes)
            if not chain.refusal:
                call.options = options
                became[chain.last] = _replace(gm.graph, chain, call)
    gm.recompile()


def _refusal(call: Call, chain: Chain, modes: Modes) -> str:
    """Why the call does not give what the model does; "" if it does, as far as shapes, dtypes and strides tell."""
    wanted = value(chain.last)
    try:
        with modes.at(chain.last):
            got = call.traced([value(tensor) for tensor in call.tensors.values()])
    except Exception as error:  # the functional call refuses its arguments: the model's own operators may take them
        return summary(error)
    y = value(got.graph.output_node().args[0])
    if y.shape != wanted.shape or y.dtype != wanted.dtype:
        return f"its result would be {tuple(y.shape)} {y.dtype}, the model's is {tuple(wanted.shape)} {wanted.dtype}"
    if y.stride() != wanted.stride():
        call.layout = memory_format(wanted)
        if not wanted.is_contiguous(memory_format=call.layout):
            return f"its result has strides of its own, {wanted.stride()}"
    return ""


def _replace(graph: fx.Graph, chain: Chain, call: Call) -> fx.Node:
    with graph.inserting_before(chain.last):
        node = graph.call_function(call, tuple(call.tensors.values()))
    node.meta = {**chain.last.meta, **graph_compat.region_tags(chain.nodes[0])}
    chain.last.replace_all_uses_with(node)
    for old in reversed(chain.nodes):
        graph.erase_node(old)
    return node


def lower(gm: fx.GraphModule) -> None:
    """Replaces the calls by the operators that they come to. For graphs without gradients."""
    modes = Modes(gm.graph)
    for node in list(gm.graph.nodes):
        if isinstance(node.target, Call):
            with modes.at(node):
                inline(gm.graph, node, node.target.traced([value(tensor) for tensor in node.args]))
    gm.recompile()
