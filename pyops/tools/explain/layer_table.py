"""Render a layer summary as a table: one line per computing layer, together with the pointwise layers after it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from math import prod

from ..text_table import align, wrap
from .layers import Layer, LayerSummary

HEADS = {
    "name": "layer", "kind": "modules", "kernel_size": "kernel", "stride": "s", "padding": "p", "dilation": "d",
    "output": "output", "parameters": "params", "macs": "GMAC", "backend": "backend", "config": "config",
    "bytes": "MB", "lower_bound_us": "bound", "attained": "attained",
}  # fmt: skip
LEFT = ("name", "kind", "backend", "config")
OPTIONAL = ("kind", "parameters", "padding", "bytes", "config", "attained")  # left out in this order
BELOW = {"backend": "backend {}", "config": "{}", "bytes": "{} MB", "attained": "attained {}"}  # in a line of their own
SHORT = {
    "Conv2d": "conv", "BatchNorm2d": "bn", "Linear": "linear", "MaxPool2d": "max_pool", "AdaptiveAvgPool2d": "avg_pool",
    "Dropout": "dropout", "Identity": "identity", "ReLU": "relu", "LeakyReLU": "leaky_relu", "PReLU": "prelu",
    "RReLU": "rrelu",
}  # fmt: skip
Cells = dict[str, str]


def table(summary: LayerSummary, width: int, notes: Iterable[str] = ()) -> str:
    """The layers grouped by stage, then totals and notes. Until it fits, names are cut and columns left out; those of
    BELOW then stand in a second line of each layer."""
    lines = [HEADS, *_lines(summary.layers)]
    sizes = {name: max(len(line.get(name, "")) for line in lines) for name in HEADS}
    sizes = {name: size for name, size in sizes.items() if any(line.get(name) for line in lines[1:])}
    left_out = [name for name in _optional(summary) if _total(sizes) > width and sizes.pop(name, 0)]
    second = [name for name in BELOW if name in left_out and (name != "backend" or not _one_backend(summary))]
    sizes["name"] = max(sizes["name"] - max(_total(sizes) - width, 0), 8)
    gap = "  " if _total(sizes, gap=2) <= width else " "
    rows = [[line.get(name, "") for name in sizes] for line in lines]
    left = [index for index, name in enumerate(sizes) if name in LEFT]
    head, *text = align(rows, list(sizes.values()), left, gap, cut="middle")
    text = [part for row, line in zip(text, lines[1:]) for part in (row, *_second(line, second, width))]
    rule = "-" * _total(sizes, len(gap))
    below = [*_totals(summary), *notes, "s, p, d: stride, padding, dilation"]
    for what, names in (("below a layer", second), ("no room for", [name for name in left_out if name not in second])):
        below += [f"{what}: {', '.join(HEADS[name] for name in names)}"] if names else []
    return "\n".join([head, rule, *text, rule, *(wrap(line, width) for line in below)])


def _second(line: Cells, names: list[str], width: int) -> list[str]:
    """The second line of a layer, indented below its name, with the columns that have no room in the first."""
    parts = [form.format(line[name]) for name, form in BELOW.items() if name in names and line.get(name)]
    indent = " " * (len(line["name"]) - len(line["name"].lstrip()) + 4)
    return textwrap.wrap(", ".join(parts), width, initial_indent=indent, subsequent_indent=indent)


def _one_backend(summary: LayerSummary) -> bool:
    return len({layer.backend for layer in summary.layers if layer.backend}) == 1


def _optional(summary: LayerSummary) -> Iterator[str]:
    """The columns to leave out, in this order; one backend for all convolutions is in the totals."""
    yield from ("backend", *OPTIONAL) if _one_backend(summary) else (*OPTIONAL, "backend")


def _lines(layers: list[Layer]) -> Iterator[Cells]:
    """Top-level layers are not indented; deeper ones are, under a heading for their top-level module."""
    stages = {layer.name.partition(".")[0] for layer in layers if "." in layer.name}
    for stage, members in groupby(layers, key=lambda layer: ({layer.name.partition(".")[0]} & stages or {""}).pop()):
        inside = list(members)
        if not stage:
            yield from map(_cells, _groups(inside))
            continue
        yield {"name": stage + _blocks(inside), **_numbers(inside, inside[-1])}
        for group in _groups(inside):
            cells = _cells(group)
            yield {**cells, "name": "  " + cells["name"].partition(".")[2]}


def _groups(layers: list[Layer]) -> list[list[Layer]]:
    """Each layer with the pointwise layers after it: same parent, no kernel, no MACs, as many elements."""
    groups: list[list[Layer]] = []
    for layer in layers:
        first = groups[-1][0] if groups else None
        pointwise = layer.kernel_size is None and layer.macs == 0
        same_parent = first and _parent(layer) == _parent(first)
        if pointwise and same_parent and prod(layer.output) == prod(groups[-1][-1].output):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _cells(group: list[Layer]) -> Cells:
    first = group[0]
    cells = {"name": first.name or "(model)", "kind": " ".join(SHORT.get(layer.kind, layer.kind) for layer in group)}
    cells["kernel_size"] = "x".join(map(str, first.kernel_size or ()))
    for name in ("stride", "padding", "dilation"):
        value = getattr(first, name) or ""
        same = isinstance(value, tuple) and len(set(value)) == 1
        cells[name] = str(value[0]) if same else value if isinstance(value, str) else "x".join(map(str, value))
    return {**cells, "backend": first.backend or "", "config": first.config or "", **_numbers(group, first)}


def _numbers(layers: list[Layer], shown: Layer) -> Cells:
    """Sums over the layers, and the output of one of them: height x width x channels, without the batch."""
    channels, *space = shown.output[1:] or ("",)
    parameters, macs = sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers)
    return {
        "output": "x".join(map(str, [*space, channels])),
        "parameters": f"{parameters:,}" if parameters else "",
        "macs": gmac(macs) if macs else "",
        **_times(layers),
    }


def _times(layers: list[Layer]) -> Cells:
    """Bytes and lower bound, and where every convolution was measured, lower bound / measured time."""
    moving = [layer for layer in layers if layer.bytes]
    bounds = [layer.lower_bound_us for layer in moving if layer.lower_bound_us is not None]
    measured = [layer.measured_us for layer in moving if layer.measured_us is not None]
    cells = {"bytes": f"{sum(layer.bytes for layer in moving) / 1e6:.2f}"} if moving else {}
    if bounds:
        cells["lower_bound_us"] = f"{sum(bounds):.2f}"
        if len(measured) == len(moving):
            cells["attained"] = f"{sum(bounds) / sum(measured):.0%}"
    return cells


def _totals(summary: LayerSummary) -> Iterator[str]:
    yield f"{summary.parameters:,} parameters"
    yield f"{gmac(summary.macs)} GMAC, {gmac(summary.convolution_macs)} of it in convolutions"
    parameters = summary.parameters - sum(layer.parameters for layer in summary.layers)
    macs = summary.macs - sum(layer.macs for layer in summary.layers)
    if parameters or macs:
        yield f"outside of the modules above: {parameters:,} parameters, {gmac(macs)} GMAC"


def gmac(macs: int) -> str:
    """10^9 multiply-adds, three decimals."""
    return "<.001" if 0 < macs < 500_000 else f"{macs / 1e9:.3f}"


def _blocks(layers: list[Layer]) -> str:
    """ ": 3 blocks" if the module is a list of modules that hold more than one layer."""
    paths = [layer.name.split(".") for layer in layers]
    if not all(len(path) > 2 and path[1].isdigit() for path in paths):
        return ""
    count = len({path[1] for path in paths})
    return f": {count} block{'s' if count > 1 else ''}"


def _parent(layer: Layer) -> str:
    return layer.name.rpartition(".")[0]


def _total(sizes: dict[str, int], gap: int = 1) -> int:
    return sum(sizes.values()) + gap * (len(sizes) - 1)
