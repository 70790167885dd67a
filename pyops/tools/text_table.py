"""Text for a terminal: tables with aligned columns, shortened names, and wrapped lines."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

Rows = Sequence[Sequence[str]]


def align(rows: Rows, widths: Sequence[int] = (), left: Collection[int] = (0,), gap="  ", cut="start") -> list[str]:
    """The rows as lines. Columns in `left` are aligned left, the others right; a cell wider than `widths` is cut."""
    widths = widths or [max(map(len, column)) for column in zip(*rows)]
    sides = [str.ljust if index in left else str.rjust for index in range(len(widths))]
    cells = ([side(shorten(c, w, cut), w) for side, c, w in zip(sides, row, widths)] for row in rows)
    return [gap.join(row).rstrip() for row in cells]


def speedup(median: float, spread: float, counted: bool) -> str:
    """A speed-up with its spread in percent; in parentheses if that is above the limit."""
    number = f"{median:.2f} ±{100 * spread:.0f}"
    return number if counted else f"({number})"


def plural(count: int, noun: str) -> str:
    """ "1 thread", "2 threads"."""
    return f"{count} {noun}{'s' if count != 1 else ''}"


def shorten(text: str, width: int, cut: str = "start") -> str:
    """At most `width` characters of the text, with ".." where its start, middle or end is cut."""
    head = {"start": 0, "middle": width // 3, "end": width - 2}[cut]
    return text if len(text) <= width else text[:head] + ".." + text[len(text) - (width - head - 2) :]


def wrap(text: str, width: int) -> str:
    """The text in lines of at most `width` characters; those after the first are indented."""
    return textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False)
