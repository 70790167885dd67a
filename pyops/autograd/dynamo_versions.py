"""Versions of tensors while torch.compile traces, as numbers that are known then.

Dynamo would make them unknown integers. It runs these functions on its fake tensors, whose versions grow with every
change in place that it traces; nothing of them is left in the compiled graph.
"""

from __future__ import annotations

import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.symbolic_convert import InstructionTranslator

NESTED = -2


@torch._dynamo.nonstrict_trace
def produced(y: Tensor, *tensors: Tensor) -> int:
    """Marks y as made in this graph: the recipe of an input is from another trace and must not be used in this one.

    NESTED inside of a part that Dynamo traces apart, such as checkpointing's: nothing may be attached to tensors there.
    """
    try:
        tracer = InstructionTranslator.current_tx().output.current_tracer
    except AttributeError:  # Dynamo is done, and what comes after it traces again does not ask for this number
        return NESTED
    if tracer.parent is not None:
        return NESTED
    y._atrous_made_here = True  # type: ignore[attr-defined]
    return sum(tensor._version for tensor in (y, *tensors))


@torch._dynamo.nonstrict_trace
def current(y: Tensor, *tensors: Tensor) -> int:
    return sum(tensor._version for tensor in (y, *tensors)) if hasattr(y, "_atrous_made_here") else -1
