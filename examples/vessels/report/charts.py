"""The report's charts by matplotlib, in the colours of Okabe and Ito, which colour-blind eyes tell apart."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from atrous.core import files
from atrous.tools.image_file import png

from ..config import RunError
from ..metrics.published import Published
from .gather import RunResult

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
STYLES = ("-", "--", "-.", ":")  # beside the colours, for more runs and for print
DPI = 110


def check() -> None:
    """Raises RunError without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RunError("expected matplotlib, which draws the pictures, and it is missing: pip install matplotlib")


def style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)]}


def title(text: str, runs: Sequence[RunResult]) -> str:
    return text + (" (SYNTHETIC images)" if any(run.synthetic for run in runs) else "")


def figure(path: Path, panels: int, draw: Callable[[Any], None], width: float = 5.2, height: float = 4.2) -> str:
    """Writes a PNG with panels beside each other, which `draw` fills; returns its name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width * panels, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(1, panels, squeeze=False)[0]
    draw(axes)
    files.write(path, png(canvas))
    return path.name


def losses(path: Path, runs: Sequence[RunResult]) -> str:
    """Loss, validation loss and validation ROC area over the epochs."""
    shown = (("loss", "training loss"), ("validation_loss", "validation loss"), ("validation_roc_auc", "ROC area"))

    def draw(axes: Any) -> None:
        for axis, (name, text) in zip(axes, shown):
            for index, run in enumerate(runs):
                lines = [line for line in run.history["epochs"] if line[name] is not None]
                x, y = [line["epoch"] for line in lines], [line[name] for line in lines]
                axis.plot(x, y, label=run.name, marker="." if len(x) < 30 else None, **style(index))
            axis.set_title(title(text if name != "validation_roc_auc" else "validation ROC area", runs), fontsize=9)
            axis.set_xlabel("epoch")
            axis.set_ylabel(text)
        axes[0].legend(fontsize=8)

    return figure(path, 3, draw, 4.4, 3.8)


def areas(path: Path, runs: Sequence[RunResult], baselines: Sequence[dict], published: Published) -> str:
    """ROC and precision-recall curves inside the fields of view, all test images together, with Frangi's."""
    curves = [(run.name, run.figures, style(index)) for index, run in enumerate(runs)]
    one = len(baselines) == 1
    curves += [
        (f"Frangi's filter{'' if one else f' {i + 1}'}", base, {"color": "#7f7f7f", "linestyle": ":"})
        for i, base in enumerate(baselines)
    ]

    def draw(axes: Any) -> None:
        for name, result, look in curves:
            part = result["regions"]["field"]["areas"]
            if part["curves"] is None:
                continue
            roc, pr = part["curves"]["roc"], part["curves"]["pr"]
            values = part["pooled"]
            axes[0].plot(
                roc["false_positive_rate"], roc["true_positive_rate"], label=_label(name, values["roc_auc"]), **look
            )
            axes[1].plot(pr["recall"], pr["precision"], label=_label(name, values["average_precision"]), **look)
        point = published.figures
        look = {"marker": "x", "color": "#000000", "linestyle": "", "label": "published run (DRIVE)"}
        axes[0].plot(1 - point["specificity"], point["sensitivity"], **look)
        axes[1].plot(point["sensitivity"], point["precision"], **look)
        labels = (
            ("ROC", "1 - specificity", "sensitivity", "area"),
            ("precision and recall", "recall", "precision", "average precision"),
        )
        for axis, (text, across, up, legend) in zip(axes, labels):
            axis.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axis.set_title(title(text, runs), fontsize=10)
            axis.legend(fontsize=7, title=legend, title_fontsize=7)

    return figure(path, 2, draw)


def _label(name: str, area: dict) -> str:
    return name if area["value"] is None else f"{name}: {area['value']:.4f}"


def dead(path: Path, runs: Sequence[RunResult]) -> str:
    """The fraction of dead channels of each activation, by depth."""

    def draw(axes: Any) -> None:
        for index, run in enumerate(runs):
            depth = range(1, len(run.layers) + 1)
            values = [layer.fraction for layer in run.layers]
            axes[0].plot(depth, values, label=run.name, marker="o", markersize=3, **style(index))
        axes[0].set(xlabel="activation, by depth", ylabel="fraction of channels", ylim=(-0.02, 1.02))
        axes[0].set_title(title("dead channels on the validation images", runs), fontsize=10)
        axes[0].legend(fontsize=8)

    return figure(path, 1, draw, 6.4, 3.6)
