"""Tensor versions as Python ints while torch.compile traces, where Dynamo itself would make them unknown integers.

Dynamo runs these functions on its fake tensors, whose versions grow with every in-place change that it traces. Nothing
of them is left in the compiled graph.
"""

from __future__ import annotations

import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.symbolic_convert import InstructionTranslator

NESTED = -2


@torch._dynamo.nonstrict_trace
def mark_and_sum_versions(y: Tensor, *tensors: Tensor) -> int:
    """Marks y as computed in this graph and returns the sum of all versions; NESTED inside a nested trace.

    An input of the graph lacks the mark: how to recompute it is known to another trace only and must not be used in
    this one. In a part that Dynamo traces separately, such as checkpointing's, nothing may be attached to tensors.
    """
    try:
        tracer = InstructionTranslator.current_tx().output.current_tracer
    except AttributeError:  # a trace after Dynamo's own, which does not use this number
        return NESTED
    if tracer.parent is not None:
        return NESTED
    y._atrous_in_graph = True  # type: ignore[attr-defined]
    return sum(tensor._version for tensor in (y, *tensors))


@torch._dynamo.nonstrict_trace
def sum_versions(y: Tensor, *tensors: Tensor) -> int:
    """The sum of all versions; -1 if y is not marked."""
    return sum(tensor._version for tensor in (y, *tensors)) if hasattr(y, "_atrous_in_graph") else -1
