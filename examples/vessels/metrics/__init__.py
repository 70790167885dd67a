"""Metrics of vessel segmentation: `evaluate` gives every figure, `render` prints them, `published.load` has those to
compare with, and `frangi` is the baseline without training."""

from . import published
from .curves import areas, best_threshold
from .evaluate import evaluate
from .frangi import frangi
from .matrix import ratios, scores
from .prediction import Prediction
from .table import render
from .vessel_width import vessel_widths, width_classes

__all__ = [
    "Prediction", "areas", "best_threshold", "evaluate", "frangi", "published", "ratios", "render", "scores",
    "vessel_widths", "width_classes",
]  # fmt: skip
