"""A walk as text that fits a terminal: a line for each layer that computes, with the pointwise ones behind it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .layers import Row, Walk

HEADS = {
    "name": "layer", "kind": "modules", "kernel_size": "kernel", "stride": "s", "padding": "p", "dilation": "d",
    "output": "output", "parameters": "params", "macs": "GMAC", "backend": "backend", "config": "config",
    "bytes": "MB", "floor_us": "floor", "share": "share",
}  # fmt: skip
LEFT = ("name", "kind", "backend", "config")
OPTIONAL = ("kind", "parameters", "padding", "bytes", "config", "share")  # left out, in this order
SHORT = {
    "Conv2d": "conv", "BatchNorm2d": "bn", "Linear": "linear", "MaxPool2d": "max_pool", "AdaptiveAvgPool2d": "avg_pool",
    "Dropout": "dropout", "Identity": "identity", "ReLU": "relu", "LeakyReLU": "leaky_relu", "PReLU": "prelu",
    "RReLU": "rrelu",
}  # fmt: skip
Cells = dict[str, str]


def table(walk: Walk, width: int, more: Iterable[str] = ()) -> str:
    """The table; where it is wider than the terminal the optional columns go, then long names are cut."""
    lines = [HEADS, *_lines(walk.rows)]
    sizes = {name: max(len(line.get(name, "")) for line in lines) for name in HEADS}
    sizes = {name: size for name, size in sizes.items() if any(line.get(name) for line in lines[1:])}
    left_out = [name for name in _optional(walk) if _total(sizes) > width and sizes.pop(name, 0)]
    sizes["name"] = max(sizes["name"] - max(_total(sizes) - width, 0), 8)
    gap = "  " if _total(sizes, gap=2) <= width else " "
    text = [_text(line, sizes, gap) for line in lines]
    rule = "-" * _total(sizes, len(gap))
    below = [*_summary(walk), *more, "s, p, d: stride, padding, dilation"]
    if left_out:
        below.append(f"no room for: {', '.join(HEADS[name] for name in left_out)}")
    wrapped = (textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in below)
    return "\n".join([text[0], rule, *text[1:], rule, *wrapped])


def _optional(walk: Walk) -> Iterator[str]:
    """The columns that a narrow terminal may lack, in this order; a row that convolves everything is in the sums."""
    same = len({row.backend for row in walk.rows if row.backend}) == 1
    yield from ("backend", *OPTIONAL) if same else (*OPTIONAL, "backend")


def _lines(rows: list[Row]) -> Iterator[Cells]:
    """Top-level layers stand alone; what lies deeper stands indented under a heading for its top-level module."""
    stages = {row.name.partition(".")[0] for row in rows if "." in row.name}
    for stage, group in groupby(rows, key=lambda row: ({row.name.partition(".")[0]} & stages or {""}).pop()):
        members = list(group)
        if not stage:
            yield from map(_cells, _sites(members))
            continue
        yield {"name": stage + _blocks(members), **_numbers(members, members[-1])}
        for site in _sites(members):
            cells = _cells(site)
            yield {**cells, "name": "  " + cells["name"].partition(".")[2]}


def _sites(rows: list[Row]) -> list[list[Row]]:
    """Each row with those behind it that are pointwise: same parent, no kernel, no product, as many elements."""
    sites: list[list[Row]] = []
    for row in rows:
        first = sites[-1][0] if sites else None
        pointwise = row.kernel_size is None and row.macs == 0
        if first and pointwise and _parent(row) == _parent(first) and prod(row.output) == prod(sites[-1][-1].output):
            sites[-1].append(row)
        else:
            sites.append([row])
    return sites


def _cells(site: list[Row]) -> Cells:
    first = site[0]
    cells = {"name": first.name or "(model)", "kind": " ".join(SHORT.get(row.kind, row.kind) for row in site)}
    cells["kernel_size"] = "x".join(map(str, first.kernel_size or ()))
    for name in ("stride", "padding", "dilation"):
        value = getattr(first, name) or ""
        same = isinstance(value, tuple) and len(set(value)) == 1
        cells[name] = str(value[0]) if same else value if isinstance(value, str) else "x".join(map(str, value))
    return {**cells, "backend": first.backend or "", "config": first.config or "", **_numbers(site, site[0])}


def _numbers(rows: list[Row], shown: Row) -> Cells:
    """Sums over the rows, and the output of the one that is shown: height x width x channels, without the batch."""
    channels, *space = shown.output[1:] or ("",)
    parameters, macs = sum(row.parameters for row in rows), sum(row.macs for row in rows)
    return {
        "output": "x".join(map(str, [*space, channels])),
        "parameters": f"{parameters:,}" if parameters else "",
        "macs": gmac(macs) if macs else "",
        **_times(rows),
    }


def _times(rows: list[Row]) -> Cells:
    """Bytes and floor, and which share of the measured time the floor is, where all convolutions were measured."""
    moving = [row for row in rows if row.bytes]
    floors = [row.floor_us for row in moving if row.floor_us is not None]
    measured = [row.measured_us for row in moving if row.measured_us is not None]
    cells = {"bytes": f"{sum(row.bytes for row in moving) / 1e6:.2f}"} if moving else {}
    if floors:
        cells["floor_us"] = f"{sum(floors):.2f}"
        if len(measured) == len(moving):
            cells["share"] = f"{sum(floors) / sum(measured):.0%}"
    return cells


def _summary(walk: Walk) -> Iterator[str]:
    yield f"{walk.parameters:,} parameters"
    yield f"{gmac(walk.macs)} GMAC, {gmac(walk.convolution_macs)} of it in convolutions"
    parameters = walk.parameters - sum(row.parameters for row in walk.rows)
    macs = walk.macs - sum(row.macs for row in walk.rows)
    if parameters or macs:
        yield f"outside of the modules above: {parameters:,} parameters, {gmac(macs)} GMAC"


def gmac(macs: int) -> str:
    """10^9 multiply-adds, three decimals."""
    return "<.001" if 0 < macs < 500_000 else f"{macs / 1e9:.3f}"


def _blocks(rows: list[Row]) -> str:
    """ ": 3 blocks" where the module is a list of modules that hold more than one layer."""
    paths = [row.name.split(".") for row in rows]
    if not all(len(path) > 2 and path[1].isdigit() for path in paths):
        return ""
    count = len({path[1] for path in paths})
    return f": {count} block{'s' if count > 1 else ''}"


def _parent(row: Row) -> str:
    return row.name.rpartition(".")[0]


def _total(sizes: dict[str, int], gap: int = 1) -> int:
    return sum(sizes.values()) + gap * (len(sizes) - 1)


def _text(line: Cells, sizes: dict[str, int], gap: str) -> str:
    cells = []
    for name, size in sizes.items():
        cell = line.get(name, "")
        cell = cell if len(cell) <= size else cell[: size // 3] + ".." + cell[len(cell) - (size - size // 3 - 2) :]
        cells.append(cell.ljust(size) if name in LEFT else cell.rjust(size))
    return gap.join(cells).rstrip()
