"""Run and render `explain MODEL --train`: what a training step saves and moves, eager and fused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from torch import nn

from ...core.checks import UsageError
from ..text_table import align, wrap
from .training_cost import LayerCosts, costs

NOTES = (
    "saved: MB of tensors that the backward needs, each once, in the layer that allocated it, without parameters",
    "passes: how many tensors of the layer's output size its operators read or write, forward and backward",
)


def run(name: str, model: nn.Module, shape: Sequence[int]) -> dict:
    """Prints the table; returns it for JSON."""
    try:
        layers = costs(model, shape)
    except Exception as error:  # a user's own model may raise anything
        raise UsageError(f"{name} with an input of shape {tuple(shape)}, in training: {error}") from error
    print(table(layers, shape[0], shutil.get_terminal_size().columns))
    per_layer = [as_dict(layer) for layer in layers]
    return {"model": name, "input": list(shape), "layers": per_layer, **totals(layers, shape[0])}


def as_dict(layer: LayerCosts) -> dict:
    sides = {"eager": layer.eager, "atrous": layer.fused}
    return {"name": layer.name} | {
        key: {"saved_bytes": cost.saved, "passes": cost.passes, "moved_bytes": cost.moved}
        for key, cost in sides.items()
    }


def totals(layers: Sequence[LayerCosts], batch: int) -> dict:
    """Bytes per image, over all layers."""
    return {
        "saved_bytes_per_image": {
            "eager": sum(layer.eager.saved for layer in layers) / batch,
            "atrous": sum(layer.fused.saved for layer in layers) / batch,
        },
        "moved_bytes_per_image": {
            "eager": sum(layer.eager.moved for layer in layers) / batch,
            "atrous": sum(layer.fused.moved for layer in layers) / batch,
        },
    }


def table(layers: Sequence[LayerCosts], batch: int, width: int) -> str:
    """One line per layer: saved MB and passes, fused and eager."""
    rows = [("layer", "saved", "eager", "passes", "eager")]
    rows += [
        (layer.name or "(a convolution)", f"{layer.fused.saved / 1e6:.2f}", f"{layer.eager.saved / 1e6:.2f}",
         f"{layer.fused.passes:.1f}", f"{layer.eager.passes:.1f}")
        for layer in layers
    ]  # fmt: skip
    sizes = [max(map(len, column)) for column in zip(*rows)]
    sizes[0] = max(8, min(sizes[0], width - sum(sizes[1:]) - 2 * (len(sizes) - 1)))
    head, *lines = align(rows, sizes)
    saved, moved = totals(layers, batch).values()
    sums = [
        f"saved: {saved['atrous'] / 1e6:.2f} MB per image, eager {saved['eager'] / 1e6:.2f}: "
        f"{saved['atrous'] / max(saved['eager'], 1):.0%}",
        f"moved by operators: {moved['atrous'] / 1e6:.0f} MB per image, eager {moved['eager'] / 1e6:.0f}",
    ]
    rule = "-" * len(head)
    return "\n".join([head, rule, *lines, rule, *(wrap(line, width) for line in (*sums, *NOTES))])
