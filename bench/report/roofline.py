"""A roofline by layer: each layer's multiply-adds a second as a fraction of the fastest product's, and its limit."""

from __future__ import annotations

from typing import Any

from atrous.tools.timing import LIMIT
from bench.report import cpu
from bench.subjects.layers import ALONE
from bench.subjects.subject import OURS
from bench.summary import fraction

BARS = {f"{OURS} frozen": ("#d55e00", -0.21, "bold"), ALONE: ("#0072b2", 0.21, "normal")}  # Okabe and Ito's colours
NOTE = (
    f"pale, in parentheses: noisy, the spread is above {LIMIT:.0%}; above 100 %: Winograd's algorithm multiplies less\n"
    f"than the direct convolution, whose multiply-adds are counted. {cpu.NAMES}"
)
Row = dict[str, Any]


def draw(figure: Any, result: dict[str, Any]) -> None:
    """Draws into an empty figure of matplotlib: a panel for each dtype and batch."""
    rows = [row for row in cpu.rows(result, "layers") if row["provider"] in BARS]
    panels = list(dict.fromkeys((row["dtype"], row["batch"]) for row in rows))
    names, right = list(dict.fromkeys(row["case"] for row in rows)), 1.2 * max(map(fraction, rows))
    for axes, (dtype, batch) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels):
        top = result["ceilings"][f"gmac_s_{dtype}"]
        here = [row for row in rows if (row["dtype"], row["batch"]) == (dtype, batch)]
        _panel(axes, here, names, right)
        least = _limits(axes, here, names, result["ceilings"]["copy_gb_s"] / top)
        marks = " (short lines)" if least < 1 else ""
        axes.set_xlabel(f"100 % = {top:.0f} GMAC/s\nmemory allows {least:.0%} or more{marks}", fontsize=8)
        axes.set_title(f"{dtype}, batch {batch}", fontsize=9.5, weight="bold")
    colours = [axes.barh(0, 0, color=colour, label=name) for name, (colour, *_) in BARS.items()]
    figure.legend(handles=colours, loc="outside upper right", ncols=2, fontsize=9, frameon=False)
    figure.suptitle(f"{cpu.LAYERS}\n{NOTE}", x=0.01, ha="left", fontsize=8.5)


def _panel(axes: Any, rows: list[Row], names: list[str], right: float) -> None:
    for row in rows:
        colour, shift, weight = BARS[row["provider"]]
        position, length = names.index(row["case"]) + shift, fraction(row)
        text = f"{100 * length:.0f}" if row["counted"] else f"({100 * length:.0f})"
        axes.barh(position, length, color=colour, height=0.4, alpha=1.0 if row["counted"] else 0.4)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # so that the line at 100 % stays behind it
        axes.text(length + 0.02 * right, position, text, va="center", fontsize=7.5, weight=weight, bbox=box)
    axes.axvline(1.0, color="black", linewidth=1.0, zorder=0)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xticks([])
    axes.set(xlim=(0, right), ylim=(len(names) - 0.5, -0.5))
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _limits(axes: Any, rows: list[Row], names: list[str], copy: float) -> float:
    """Marks layers that memory limits below 100 %, and returns the least limit of all.

    copy: bytes a second over the product's multiply-adds a second.
    """
    limits = {row["case"]: copy * row["macs"] / row["moved_bytes"] for row in rows}
    for case, limit in limits.items():
        if limit < 1:
            axes.plot([limit] * 2, [names.index(case) + side for side in (-0.45, 0.45)], color="black")
    return min(limits.values())
