"""Draw the README's pictures from the newest results file of `make bench`: python -m bench.report.picture [FOLDER]"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import bars, cpu, roofline
from bench.report.report import PICTURES, ROOT, folder_results

Result = dict[str, Any]
DRAWN = {PICTURES[0]: (bars.draw, (10.0, 5.2)), PICTURES[1]: (roofline.draw, (10.0, 7.0))}  # inches
DPI = 160  # shown at about 80 pixels to an inch; the rest is for screens of high resolution


def save(
    path: Path, draw: Callable[[Any, Result], None], inches: tuple[float, float], result: Result, name: str
) -> None:
    """Writes a PNG. The name of the results file stands in it, so that a test sees a picture of another file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    figure = Figure(figsize=inches, dpi=DPI, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    draw(figure, result)
    figure.supxlabel(f"{cpu.origin(result)}, {name}", fontsize=8)
    canvas.draw()
    image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    text = PngInfo()
    text.add_text("Source", name)
    image.quantize(64).save(path, format="PNG", optimize=True, pnginfo=text)  # few colours make a small file


def main(argv: list[str]) -> int:
    results = folder_results(ROOT / "bench" / "results")
    name = cpu.newest(results)
    if name is None:
        print("bench.report.picture: expected a file of `make bench` in bench/results, got none", file=sys.stderr)
        return 2
    for path, (draw, inches) in DRAWN.items():
        save((Path(argv[0]) if argv else ROOT) / path, draw, inches, results[name], name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
