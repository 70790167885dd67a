"""Test images in a line each: input, truth, probability, and where the prediction at 0.5 is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atrous.core import files
from atrous.tools.image_file import png

from ..metrics import Prediction
from .charts import DPI
from .gather import RunResult

RIGHT, MISSED, EXTRA = (0.75, 0.75, 0.75), (0.0, 0.447, 0.698), (0.835, 0.369, 0.0)  # grey, blue, vermilion
TITLES = ("input", "truth", "probability", "error: blue is missed, orange is too much, grey is right")
THRESHOLD = 0.5


def error_map(image: Prediction) -> np.ndarray:
    """Returns (H, W, 3): RIGHT on vessels that are marked, MISSED, EXTRA, white on the field's rest, black outside."""
    marked, inside = image.probability >= THRESHOLD, image.field
    colours = np.zeros((*inside.shape, 3))
    colours[inside] = 1.0
    for mask, colour in (
        (marked & image.truth, RIGHT), (~marked & image.truth, MISSED), (marked & ~image.truth, EXTRA)
    ):  # fmt: skip
        colours[mask & inside] = colour
    return colours


def draw(path: Path, run: RunResult, count: int) -> str:
    """Writes a PNG of the run's first `count` test images; returns its name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = list(zip(run.test.samples, run.predicted))[:count]
    canvas = Figure(figsize=(15, 4.0 * len(chosen)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.subplots(len(chosen), 4, squeeze=False)
    for line, (sample, image) in zip(grid, chosen):
        line[0].imshow(sample.image)
        line[1].imshow(image.truth, cmap="gray", vmin=0, vmax=1)
        line[2].imshow(image.probability, cmap="cividis", vmin=0, vmax=1)
        line[3].imshow(error_map(image))
        line[0].set_ylabel(sample.name + (", SYNTHETIC" if sample.synthetic else ""), fontsize=8)
        for axis, text in zip(line, TITLES):
            axis.set(xticks=[], yticks=[])
            axis.set_title(text, fontsize=8)
    files.write(path, png(canvas))
    return path.name
