"""Render the slopes of a checkpoint: as a table for a terminal of at least 40 columns, and as a plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..image_file import png
from ..text_table import align, shorten, wrap
from .slopes import Slopes

HEADS = ("ch", "min", "mean", "max", "<0", ">1")
BAR = (13, 30)  # its least and its largest width
NAMED = 64  # a plot has room for the names of at most this many tensors


def table(tensors: Sequence[Slopes], width: int) -> str:
    """One line per tensor, or two if that is too wide: name and bar, then the numbers. At least 40 columns."""
    width = max(width, 40)
    low, high = _scale(tensors)
    cells = align([HEADS, *map(_numbers, tensors)], left=(), gap=" ")
    names = ["slopes", *(label(slopes) for slopes in tensors)]
    longest = max(map(len, names))
    beside = len(cells[0]) + 1 if longest + len(cells[0]) + BAR[0] + 2 <= width else 0
    longest = min(longest, width - BAR[0] - 1 - beside)
    size = min(width - longest - 1 - beside, BAR[1])
    scale = number(low) + number(high).rjust(size - len(number(low)))
    lines = []
    for name, text, bar in zip(names, cells, [scale, *(_bar(slopes, low, high, size) for slopes in tensors)]):
        cut = shorten(name, longest).ljust(longest)
        lines += [f"{cut} {text} {bar}".rstrip()] if beside else [f"{cut} {bar}".rstrip(), f"  {text}"]
    head = 1 if beside else 2
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[:head], rule, *lines[head:], rule, *(wrap(note, width) for note in _notes(tensors))])


def label(slopes: Slopes) -> str:
    """The name of the module: the tensor's name without .weight."""
    return slopes.name.removesuffix(".weight")


def number(value: float | None) -> str:
    """Three decimals, or only the magnitude of a large value. Six characters, seven with a sign."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 9.9995 else f"{value:.0e}"


def _numbers(slopes: Slopes) -> tuple[str, ...]:
    counts = (str(slopes.below_0), str(slopes.above_1))
    return (str(slopes.channels), number(slopes.min), number(slopes.mean), number(slopes.max), *counts)


def _scale(tensors: Sequence[Slopes]) -> tuple[float, float]:
    """The common scale of all bars: from the least slope to the largest, including 0."""
    low = min([0.0, *(slopes.min for slopes in tensors if slopes.min is not None)])
    high = max([0.0, *(slopes.max for slopes in tensors if slopes.max is not None)])
    return (low, high) if low < high else (0.0, 1.0)


def _bar(slopes: Slopes, low: float, high: float, size: int) -> str:
    def place(value: float) -> int:
        return round((value - low) / (high - low) * (size - 1))

    cells = [" "] * size
    if slopes.min is not None and slopes.mean is not None and slopes.max is not None:
        first, last = place(slopes.min), place(slopes.max)
        cells[first : last + 1] = "-" * (last + 1 - first)
    cells[place(0.0)] = "|"
    if slopes.mean is not None:
        cells[place(slopes.mean)] = "o"
    return "".join(cells)


def _notes(tensors: Sequence[Slopes]) -> Iterator[str]:
    below, above = sum(slopes.below_0 for slopes in tensors), sum(slopes.above_1 for slopes in tensors)
    counted = f"{len(tensors)} slope tensor{'s' if len(tensors) > 1 else ''}"
    yield f"{counted}, {sum(slopes.channels for slopes in tensors):,} channels: {below:,} below 0, {above:,} above 1"
    for slopes in tensors:
        if slopes.not_finite:
            yield f"NOT FINITE: {slopes.not_finite} of {slopes.channels} in {label(slopes)}"
    yield "bar: - from min to max, o the mean, | zero"
    yield "slopes are found by name: 1-D weights without a bias or running statistics, outside of norms"


def plot(tensors: Sequence[Slopes], title: str) -> bytes:
    """A PNG that has, over the depth, a bar from min to max of each tensor and a line through the means."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    depth = range(len(tensors))
    low, mean, high = ([_or_nan(getattr(slopes, name)) for slopes in tensors] for name in ("min", "mean", "max"))
    named = len(tensors) <= NAMED
    wide = max(6.0, 2.0 + 0.24 * min(len(tensors), NAMED))
    figure = Figure(figsize=(wide, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for value, style in ((0.0, "-"), (0.25, ":")):
        axes.axhline(value, color="#2b2d42", linewidth=0.8, linestyle=style, zorder=2.5)
    axes.vlines(depth, low, high, color="#8d99ae", linewidth=5, zorder=2, label="min to max")
    axes.plot(depth, mean, color="#d1495b", marker="o", markersize=4, linewidth=1.2, zorder=3, label="mean")
    if named:
        axes.set_xticks(depth, [shorten(label(slopes), 28) for slopes in tensors], rotation=90)
    axes.set_xlabel("" if named else "depth: slope tensors in the order of the checkpoint", fontsize=9)
    axes.set_ylabel("slope (dotted: 0.25, where PReLU starts)", fontsize=9)
    axes.set_title(f"Slopes by depth, {shorten(title, 32)}", fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8, frameon=False)  # above the bars
    return png(figure)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
