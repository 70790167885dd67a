"""python -m atrous explain MODEL --train: what a training step keeps and moves, beside the model as it is."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from torch import nn

from ...core.checks import Mistake
from .training_cost import Site, costs

NOTE = (
    "kept: MB that the backward needs, each tensor once, at the site that made it, parameters left out",
    "passes: tensors of the site's output size that its operators read or write, forward and backward",
)


def run(name: str, model: nn.Module, shape: Sequence[int]) -> dict:
    """Prints the table; returns it for JSON."""
    try:
        found = costs(model, shape)
    except Exception as error:  # a user's own model may raise anything
        raise Mistake(f"{name} with an input of shape {tuple(shape)}, in training: {error}") from error
    print(table(found, shape[0], shutil.get_terminal_size().columns))
    return {"model": name, "input": list(shape), "sites": [as_dict(site) for site in found], **totals(found, shape[0])}


def as_dict(site: Site) -> dict:
    sides = {"eager": site.eager, "atrous": site.fused}
    return {"name": site.name} | {
        key: {"kept_bytes": cost.kept, "passes": cost.passes, "moved_bytes": cost.moved} for key, cost in sides.items()
    }


def totals(found: Sequence[Site], batch: int) -> dict:
    """Bytes an image, of all sites."""
    return {
        "kept_bytes_per_image": {
            "eager": sum(site.eager.kept for site in found) / batch,
            "atrous": sum(site.fused.kept for site in found) / batch,
        },
        "moved_bytes_per_image": {
            "eager": sum(site.eager.moved for site in found) / batch,
            "atrous": sum(site.fused.moved for site in found) / batch,
        },
    }


def table(found: Sequence[Site], batch: int, width: int) -> str:
    """A line a site; kept and passes, eager's and ours."""
    heads = ("site", "kept", "eager", "passes", "eager")
    cells = [
        (site.name or "(a convolution)", f"{site.fused.kept / 1e6:.2f}", f"{site.eager.kept / 1e6:.2f}",
         f"{site.fused.passes:.1f}", f"{site.eager.passes:.1f}")
        for site in found
    ]  # fmt: skip
    sizes = [max(map(len, column)) for column in zip(heads, *cells)]
    sizes[0] = max(8, min(sizes[0], width - sum(sizes[1:]) - 2 * (len(sizes) - 1)))
    lines = [_line(row, sizes) for row in (heads, *cells)]
    kept, moved = totals(found, batch).values()
    sums = [
        f"kept: {kept['atrous'] / 1e6:.2f} MB an image, eager {kept['eager'] / 1e6:.2f}: "
        f"{kept['atrous'] / max(kept['eager'], 1):.0%}",
        f"moved by operators: {moved['atrous'] / 1e6:.0f} MB an image, eager {moved['eager'] / 1e6:.0f}",
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:], rule, *(_fill(line, width) for line in (*sums, *NOTE))])


def _line(row: Sequence[str], sizes: Sequence[int]) -> str:
    name = row[0] if len(row[0]) <= sizes[0] else ".." + row[0][len(row[0]) - sizes[0] + 2 :]
    return "  ".join([name.ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(row[1:], sizes[1:]))])


def _fill(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False)
