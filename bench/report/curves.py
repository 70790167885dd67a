"""Draw a result of bench.commands.training_curve: losses of eager and fused beside fp64's, and below their errors.

python -m bench.report.curves     draw the newest one, and write its paragraph into docs/usage.md, between two markers
"""

from __future__ import annotations

import re
import statistics
import textwrap
from pathlib import Path
from typing import Any

from bench import record
from bench.report import picture

INCHES = (10.0, 6.4)
PAGE = record.ROOT / "docs" / "usage.md"
BLOCK = re.compile(r"(<!-- training curve: begin -->\n).*?(<!-- training curve: end -->)", re.DOTALL)
RESULTS, PICTURE = record.ROOT / "bench" / "results", record.ROOT / "docs" / "training-curve.png"
# Okabe and Ito's colours, dashes and widths: fused is dashed and thin, so that eager shows below it.
STYLES = {"fp64": ("#000000", "-", 2.6), "eager": ("#56b4e9", "-", 1.6), "fused": ("#d55e00", (0, (4, 2)), 1.0)}
TITLES = {"fp32": "fp32", "bf16": "bf16 autocast"}
Row = dict[str, Any]


def draw(figure: Any, result: dict[str, Any]) -> None:
    """Draws the first seed into an empty figure of matplotlib, a column for each precision."""
    rows = result["rows"]
    panels = figure.subplots(2, len(rows), sharex=True, sharey="row")
    for (above, below), row in zip(panels.T, rows):
        _losses(above, row)
        _errors(below, row)
        over = result["ratios"][row["precision"]]["training"]
        below.set_title(f"fused over eager: {over:.2f}x (medians over steps; seeds: {result['seeds']})", fontsize=9)
    panels[0, 0].set_ylabel("training loss")
    panels[1, 0].set_ylabel("|loss - loss in fp64|")
    figure.suptitle("Training from one seed: a dilated ResNet with PReLU on scanned digits", x=0.01, ha="left")


def _losses(axes: Any, row: Row) -> None:
    for kind, curve in row["curves"].items():
        colour, dashes, width = STYLES[kind]
        label = f"{kind}: last loss {curve['training'][-1]:.3f}, {curve['right']:.1%} of held-out digits right"
        axes.plot(_steps(curve["training"]), curve["training"], color=colour, ls=dashes, lw=width, label=label)
    axes.set_title(TITLES[row["precision"]], fontsize=10, weight="bold")
    axes.legend(fontsize=8, frameon=False)


def _errors(axes: Any, row: Row) -> None:
    for kind, errors in row["errors"].items():
        off, (colour, _, width) = errors["training"], STYLES[kind]
        median = statistics.median(off)
        values = [value or float("nan") for value in off]  # an equal loss has no place on a log axis
        axes.semilogy(_steps(off), values, color=colour, lw=width, label=f"{kind}: median {median:.1e}")
        axes.axhline(median, color=colour, lw=0.8, ls=":")
    axes.set_xlabel("step")
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _steps(values: list[float]) -> range:
    return range(1, len(values) + 1)


def save(path: Path, source: Path) -> None:
    """Writes the picture of a results file."""
    picture.save(path, draw, INCHES, {"peers": {}, **record.read(source)}, source.name)


def newest(folder: Path = RESULTS) -> Path:
    return max(folder.glob("training-curve-cpu-*.json"))


def page(text: str, folder: Path = RESULTS) -> str:
    """docs/usage.md with the newest result. Raises ValueError if the markers are missing."""
    if not BLOCK.search(text):
        raise ValueError("expected the lines <!-- training curve: begin --> and <!-- training curve: end -->, got none")
    shown = "\n".join(textwrap.fill(line, 120, break_long_words=False) for line in described(newest(folder)))
    return BLOCK.sub(lambda markers: f"{markers[1]}{shown}\n{markers[2]}", text)


def described(path: Path) -> list[str]:
    """Markdown for a page in docs/: the picture, and a sentence with the numbers of all seeds."""
    result = record.read(path)
    over = "; ".join(
        f"{TITLES[name]} {', '.join(f'{ratio:.2f}x {kind}' for kind, ratio in ratios.items())}"
        for name, ratios in result["ratios"].items()
    )
    return [
        f"![Losses of eager and fused training beside fp64]({PICTURE.name})",
        "",
        f"{result['steps']} steps, seeds: {result['seeds']}, the first in the picture. Error of fused over eager's, of "
        f"each the median over steps and seeds of |loss - loss in fp64|: {over}. "
        f"Rounding errors grow in any training until "
        f"runs differ as much as two trainings do, so only their size compares. {result['device']}, torch "
        f"{result['versions']['torch']}, {result['date']}; [{path.name}](../bench/results/{path.name}).",
    ]


def main() -> None:
    save(PICTURE, newest())
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
