"""The comparison's pictures: the differences with their intervals, and a part of a test image as each arm sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import cut
from ..metrics import Prediction
from ..report.charts import COLOURS, figure
from .arms import REFERENCE, Arm
from .statistics import CONFIDENCE, METRICS

SIDE = 144  # pixels of the part of an image


def differences(path: Path, arms: Sequence[Arm], compared: Mapping[str, dict], synthetic: bool) -> str:
    """A panel for each metric: the median difference from the reference and its interval, filled where it is shown."""
    names = [arm.name for arm in arms if arm.name in compared and arm is not REFERENCE]

    def draw(axes: Any) -> None:
        for axis, (metric, title) in zip(axes, METRICS.items()):
            axis.axvline(0, color="#7f7f7f", linewidth=0.8)
            for y, name in enumerate(names):
                line = compared[name][metric]
                if line["median"] is None:
                    continue
                if line["low"] is not None:
                    axis.plot([line["low"], line["high"]], [y, y], color=COLOURS[0])
                face = COLOURS[0] if line["shown"] else "white"
                axis.plot(line["median"], y, "o", color=COLOURS[0], markerfacecolor=face)
            axis.set(yticks=range(len(names)), yticklabels=[], ylim=(max(len(names), 1) - 0.5, -0.5))
            axis.set_title(title, fontsize=9)
            axis.tick_params(axis="x", labelsize=7)
            axis.locator_params(axis="x", nbins=5)
        axes[0].set_yticklabels(names, fontsize=8)
        axes[0].figure.supxlabel(
            f"median difference from {REFERENCE.title}, {CONFIDENCE:.0%} interval over images; "
            f"filled: shown after correction{'; SYNTHETIC images' if synthetic else ''}",
            fontsize=8,
        )

    return figure(path, len(METRICS), draw, 2.9, 1.2 + 0.32 * len(names))


def details(path: Path, predicted: Mapping[str, Prediction], synthetic: bool) -> str:
    """The same part of an image beside each other: truth, and the probability by each arm."""
    first = next(iter(predicted.values()))
    part = densest(first.truth & first.field)

    def draw(axes: Any) -> None:
        values = {"truth": first.truth, **{name: image.probability * image.field for name, image in predicted.items()}}
        for axis, (name, shown) in zip(axes, values.items()):
            axis.imshow(shown[part], cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_title(name, fontsize=9)
        axes[0].set_ylabel(first.name + (", SYNTHETIC" if synthetic else ""), fontsize=8)

    return figure(path, 1 + len(predicted), draw, 2.4, 2.6)


def densest(mask: np.ndarray, side: int = SIDE) -> tuple[slice, slice]:
    """Returns the square of `side` pixels that holds most of a mask, the first of several; all of a smaller mask."""
    height, width = (min(side, size) for size in mask.shape)
    inside = cut.window_sums(mask, height, width)
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return slice(top, top + height), slice(left, left + width)
