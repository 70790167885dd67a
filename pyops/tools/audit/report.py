"""Render an audit as text for a terminal: the numbers, a map of the field in block characters, and the layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, zip_longest

from torch import Tensor
from torch.nn import functional as F

from ...audit import Audit
from ...audit.layers import Layer
from ..text_table import align, shorten, wrap

COLUMNS = ("layer", "kernel", "stride", "rate", "input", "padding", "GMAC")
SHORTEST_NAME = 16  # characters
LARGEST_HOLE_MAP, LARGEST_COUNT_MAP = 64, 40  # columns


def render(title: str, audit: Audit, suggested: Sequence[Audit], width: int, blocks: str) -> str:
    """The whole report, in lines of at most `width` characters."""
    lines = [wrap(title, width), ""]
    numbers = facts(audit)
    left = max(len(name) for name, _ in numbers) + 2
    for name, text in numbers:
        first, *rest = wrap(text, max(width - left, 20)).splitlines()
        lines += [name.ljust(left) + first, *(" " * left + line for line in rest)]
    lines += ["", *_maps([("field", audit), *((f"rates {rates(other)}", other) for other in suggested)], width, blocks)]
    if audit.input_size:
        lines += ["", *layer_table(audit.layers, width)]
    return "\n".join(lines)


def facts(audit: Audit) -> list[tuple[str, str]]:
    """The numbers of an audit, each with its name."""
    height, width = audit.receptive_field
    lines = [
        ("field", f"{height}x{width} pixels, {audit.positions:,} positions"),
        ("read", f"{audit.reached:,} of them, {percent(audit.coverage)}; {holes(audit)}"),
        ("read how often", f"{number(lowest(audit))} to {number(float(audit.profile.max()))} times"),
    ]
    if audit.stack:
        lines.append(("rates", f"{rates(audit)}; greatest common divisor {audit.common_factor}"))
    if audit.hdc is not None:
        answer = "holds" if audit.hdc else "does not hold"
        lines.append(("HDC", f"M_2 <= K {answer}; it does not exclude holes: see the line `read`"))
    if audit.gmac is not None:
        lines.append(("convolutions", f"{audit.gmac:.3f} GMAC"))
    if audit.global_branches:
        listed = ", ".join(audit.global_branches[:3]) + (" ..." if len(audit.global_branches) > 3 else "")
        lines.append(("global branches", f"{len(audit.global_branches)}, which read the whole map: {listed}"))
    if audit.suggestion:
        lines.append(("suggestion", str(audit.suggestion)))
    return lines


def holes(audit: Audit) -> str:
    """Their number, and the side of the largest."""
    if not audit.holes:
        return "no holes"
    return f"{audit.holes:,} holes, the largest {audit.largest_hole}x{audit.largest_hole} pixels"


def lowest(audit: Audit) -> float:
    """The least count of a position that is read."""
    return float(audit.profile[audit.profile > 0].min())


def rates(audit: Audit) -> str:
    """1, 2, 5; with equal ones in a row counted: 1, 2 (4 times)."""
    assert audit.stack is not None
    runs = [(rate, len(list(equal))) for rate, equal in groupby(audit.stack.rates)]
    return ", ".join(", ".join([str(rate)] * count) if count < 4 else f"{rate} ({count} times)" for rate, count in runs)


def percent(fraction: float) -> str:
    """A fraction in percent; never 100 % or 0 % for one that is neither 1 nor 0."""
    return f"{fraction:.1%}" if fraction in (0, 1) or 0.0005 < fraction < 0.9995 else f"{fraction:.4%}"


def number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def _maps(audits: Sequence[tuple[str, Audit]], width: int, blocks: str) -> list[str]:
    """The maps beside each other, or below each other where the terminal is too narrow, and what they show."""
    by_holes = [_shows_holes(audit, width) for _, audit in audits]
    columns = []
    for (name, audit), has_holes in zip(audits, by_holes):
        lines = hole_map(audit.profile, blocks) if has_holes else count_map(audit.profile, width, blocks)
        columns.append([name, *lines])
    sides = [max(map(len, column)) for column in columns]
    if sum(sides) + 3 * (len(sides) - 1) <= width:
        shown = ["   ".join(one.ljust(side) for one, side in zip(line, sides)).rstrip()
                 for line in zip_longest(*columns, fillvalue="")]  # fmt: skip
    else:
        shown = [line for column in columns for line in (*column, "")][:-1]
    notes = {True: "with holes: black is read, a blank is not", False: "without holes: darker is read more often"}
    return [*shown, *(wrap(note, width) for has_holes, note in notes.items() if has_holes in by_holes)]


def _shows_holes(audit: Audit, width: int) -> bool:
    return audit.holes > 0 and max(audit.profile.shape) <= min(width, LARGEST_HOLE_MAP)


def hole_map(counts: Tensor, blocks: str) -> list[str]:
    """One character for a position and the one below it: which of the two are read."""
    read = F.pad((counts > 0).long(), (0, 0, 0, len(counts) % 2))
    halves = " ▀▄█" if blocks[-1] == "█" else " ':|"
    return ["".join(halves[code] for code in line).rstrip() for line in (read[::2] + 2 * read[1::2]).tolist()]


def count_map(counts: Tensor, width: int, blocks: str) -> list[str]:
    """Two characters for each square of positions, by the logarithm of their mean count."""
    side = max(1, math.ceil(2 * max(counts.shape) / min(width, LARGEST_COUNT_MAP)))
    shades = F.avg_pool2d(counts[None, None], side, ceil_mode=True)[0, 0].log1p()
    levels = (shades / shades.max() * (len(blocks) - 1)).ceil().long().tolist()  # 0 for 0 alone
    return ["".join(blocks[level] * 2 for level in line).rstrip() for line in levels]


def layer_table(layers: Sequence[Layer], width: int) -> list[str]:
    """A line for each layer, or for equal ones in a row."""
    lines = [COLUMNS, *layer_cells(layers)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    room = width - sum(widths[1:]) - 2 * len(widths[1:])
    note = wrap("padding: the fraction of a layer's taps that read padding", width)
    if room < min(widths[0], SHORTEST_NAME):  # the name on a line of its own
        cells = align([line[1:] for line in lines], left=())
        return [*(text for line, cell in zip(lines, cells) for text in (shorten(line[0], width), cell)), note]
    return [*align(lines, (min(widths[0], room), *widths[1:])), note]


def layer_cells(layers: Sequence[Layer]) -> list[tuple[str, ...]]:
    """The cells of COLUMNS for each layer, or for equal ones in a row."""
    lines = []
    for cells, alike in groupby(layers, _cells):
        first, *others = (layer.name or layer.operator for layer in alike)
        lines.append((f"{first} + {len(others)} alike" if others else first, *cells))
    return lines


def _cells(layer: Layer) -> tuple[str, ...]:
    size = pair(layer.input_size) if layer.input_size else "-"
    padding = "-" if layer.padding_share is None else percent(layer.padding_share)
    gmac = "-" if layer.gmac is None else f"{layer.gmac:.3f}"
    return pair(layer.kernel_size), one(layer.stride), one(layer.rate), size, padding, gmac


def pair(values: tuple[int, int]) -> str:
    return "x".join(map(str, values))


def one(values: tuple[int, int]) -> str:
    """One number if both are equal."""
    return str(values[0]) if values[0] == values[1] else pair(values)
