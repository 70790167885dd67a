"""Draw the README's picture from bench/results: python -m bench.report.picture [PNG]

One row of panels per CPU, one panel per batch size, one bar per variant: its speed-up over eager NCHW.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from atrous.tools.demo import report as demo_report
from bench.report.report import ROOT, read

PICTURE = ROOT / "docs" / "resnet34-cpu.png"
RESULTS = ("cpu-avx2-2026-11-22.json", "cpu-avx512-training-2026-11-24.json")  # the last run on each CPU
SOURCE = ", ".join(RESULTS)  # stands in the PNG too, so that a test sees a picture of other files
DTYPE, BATCHES = "float32", (1, 8)
INCHES, DPI = (8.0, 4.8), 200  # shown at 800 pixels, 100 to an inch; the rest is for screens of high resolution
COLOURS = {"eager": "#b8c0cc", "compile": "#7b8794", "atrous": "#c8374a"}
LIMIT = 2.9  # right end of each panel's axis


def panel(axes: Any, result: dict[str, Any], batch: int) -> None:
    """Draws a bar per variant, with its speed-up at the bar's end and its time at the panel's."""
    cells = [row for row in result["inference"] if (row["dtype"], row["batch"]) == (DTYPE, batch)]
    for position, row in enumerate(cells):
        speed, weight = row["speedup_vs_eager"], "bold" if row["variant"] == "atrous" else "normal"
        axes.barh(position, speed, color=COLOURS[row["variant"].partition("_")[0]], height=0.76)
        axes.text(speed + 0.04, position, f"{speed:.2f}x", va="center", fontsize=9, weight=weight)
        axes.text(LIMIT, position, f"{row['median_ms']:.1f} ms", va="center", ha="right", fontsize=9, weight=weight)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(cells)), [demo_report.label(row["variant"]) for row in cells], fontsize=9)
    axes.set_xticks([0, 0.5, 1, 1.5], ["0", "0.5x", "1x", "1.5x"], fontsize=8)
    axes.set(xlim=(0, LIMIT), ylim=(len(cells) - 0.5, -0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{result['device']['capability']}, batch {batch}", fontsize=10, loc="left", weight="bold")


def run(result: dict[str, Any]) -> str:
    device, torch = result["device"], result["versions"]["torch"]
    return f"{device['capability']}: {device['name']}, {device['threads']} threads, torch {torch}, {result['date']}"


def draw(path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    results = [read(ROOT / "bench" / "results" / name) for name in RESULTS]
    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(results), len(BATCHES), sharey="row", squeeze=False)
    for line, result in zip(grid, results):
        for axes, batch in zip(line, BATCHES):
            panel(axes, result, batch)
    size = results[0]["model"]["size"]
    title = f"ResNet34 with PReLU at {size}x{size}, {DTYPE} inference: speed-up over eager NCHW (longer is faster)"
    figure.suptitle(title, fontsize=11)
    text = ["right of each bar: median time of a batch in milliseconds", *map(run, results)]
    figure.supxlabel("\n".join(text), fontsize=8)
    canvas.draw()
    image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    names = PngInfo()
    names.add_text("Source", SOURCE)
    image.quantize(64).save(path, format="PNG", optimize=True, pnginfo=names)  # few colours make a small file


def main(argv: list[str]) -> int:
    draw(Path(argv[0]) if argv else PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
