"""Activation checkpointing inside a graph: its regions become a part of the graph, tagged to be recomputed."""

from __future__ import annotations

import itertools
import operator
from typing import Any

from torch import fx

from ..core import graph_compat

_regions = itertools.count()


def inline_checkpoints(gm: fx.GraphModule) -> None:
    """Replaces each checkpointed region by its nodes. A region with a policy of its own (context_fn) stays."""
    for node in list(gm.graph.nodes):
        region = graph_compat.checkpointed(gm, node)
        if region is None:
            continue
        places = [n for n in region.graph.nodes if n.op == "placeholder"]
        known: set[fx.Node] = set(gm.graph.nodes)
        with gm.graph.inserting_before(node):
            results: Any = gm.graph.graph_copy(region.graph, dict(zip(places, node.args[1:])))
        number = next(_regions)
        for copied in gm.graph.nodes:
            if copied not in known:
                graph_compat.recompute(copied, number)
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])
            gm.graph.erase_node(user)
        gm.graph.erase_node(node)
    gm.recompile()
