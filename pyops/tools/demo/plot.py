"""Draw the demo's times of inference: a panel per batch and dtype, a bar per variant as long as its speed-up."""

from __future__ import annotations

from typing import Any

from ..image_file import png
from ..timing import LIMIT
from .report import Result, columns, label, machine, variants

BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}


def draw(result: Result) -> bytes:
    """A PNG. Bars whose speed-up is noisy are pale, and their numbers stand in parentheses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells, names = columns(result), variants(result)
    known = {(row["dtype"], row["batch"], row["variant"]): row for row in result["inference"]}
    right = 1.9 * max(row["speedup_vs_eager"] for row in result["inference"])
    across = len({size for _, size in cells})
    down = -(-len(cells) // across)
    figure = Figure(figsize=(5.2 * across, (0.42 * len(names) + 1.1) * down + 1.3), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (dtype, size) in zip(figure.subplots(down, across, squeeze=False).flat, cells):
        axes.axvline(1.0, color="#2b2d42", linewidth=0.8, linestyle=":", zorder=1)
        for position, name in enumerate(names):
            _bar(axes, position, name, known.get((dtype, size, name)), 0.015 * right)
        axes.set_yticks(range(len(names)), [label(name).replace("torch.compile with", "compile,") for name in names])
        axes.set(xlim=(0, right), ylim=(len(names) - 0.5, -0.5))
        axes.set_title(f"{dtype}, batch {size}", fontsize=10, loc="left")
        axes.set_xlabel(f"speed-up over eager NCHW in {cells[0][0]}", fontsize=9)
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title(result), fontsize=11)
    figure.supxlabel(_origin(result), fontsize=8)
    return png(figure)


def _bar(axes: Any, position: int, name: str, row: dict[str, Any] | None, gap: float) -> None:
    """A bar with its numbers to the right of it, and of the line at 1."""
    length = row["speedup_vs_eager"] if row else 0.0
    counted = row is None or row["counted"]
    colour, weight = ("#d1495b", "bold") if name.startswith("atrous") else ("#8d99ae", "normal")
    axes.barh(position, length, color=colour, height=0.7, zorder=2, alpha=1.0 if counted else 0.4)
    place = max(length, 1.0) + gap
    axes.text(place, position, _numbers(row), va="center", fontsize=9, weight=weight, bbox=BOX, zorder=3)


def _numbers(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run"
    speed = f"{row['speedup_vs_eager']:.2f}x ± {100 * row['spread']:.0f} %"
    return f"{speed if row['counted'] else f'({speed})'}   {row['median_ms']:.1f} ms"


def _title(result: Result) -> str:
    size = result["model"]["size"]
    noisy = not all(row["counted"] for row in result["inference"])
    note = f"\npale and in parentheses: noisy, the spread is above {LIMIT:.0%}" if noisy else ""
    return f"ResNet34 at {size}x{size}, inference: speed-up at the same batch; longer is faster{note}"


def _origin(result: Result) -> str:
    versions = result["versions"]
    return f"{machine(result['device'])}; torch {versions['torch']}, atrous {versions['atrous']}"
