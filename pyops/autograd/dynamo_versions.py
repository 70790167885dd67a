"""Tensor versions as Python ints while torch.compile traces, where Dynamo itself would make them unknown integers.

Dynamo runs these functions on its fake tensors, whose versions grow with every in-place change that it traces. Nothing
of them is left in the compiled graph.
"""

from __future__ import annotations

from torch import Tensor

from ..core.torch_compat import in_dynamo_graph, nonstrict_trace, version

NESTED = -2


@nonstrict_trace
def mark_and_sum_versions(y: Tensor, *tensors: Tensor) -> int:
    """Marks y as computed in this graph and returns the sum of all versions; NESTED inside a nested trace.

    An input of the graph lacks the mark: how to recompute it is known to another trace only and must not be used in
    this one. In a part that Dynamo traces separately, such as checkpointing's, nothing may be attached to tensors.
    """
    if not in_dynamo_graph():
        return NESTED
    y._atrous_in_graph = True  # type: ignore[attr-defined]
    return sum(map(version, (y, *tensors)))


@nonstrict_trace
def sum_versions(y: Tensor, *tensors: Tensor) -> int:
    """The sum of all versions; -1 if y is not marked."""
    return sum(map(version, (y, *tensors))) if hasattr(y, "_atrous_in_graph") else -1
