"""ROC and precision-recall curves, the areas under them, and the threshold of the largest F1, exact by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn import metrics

from .prediction import Prediction, check_set, pool

AREAS = ("roc_auc", "pr_auc_trapezoid", "average_precision")
POINTS = 400  # the most that a curve in a result has; a picture shows fewer


def areas(truth: np.ndarray, score: np.ndarray) -> tuple[dict[str, float | None], dict[str, dict] | None]:
    """Returns the areas and the curves, both undefined (None) without pixels of both classes.

    roc_auc is the trapezoid area of sensitivity over 1 - specificity: the chance that a vessel pixel has a higher score
    than another pixel, ties counting half. average_precision is sum((R_k - R_(k-1)) P_k) over the thresholds in falling
    order; pr_auc_trapezoid joins the points with straight lines instead, which is too optimistic (Davis and Goadrich,
    2006), and is what the published run printed.

    Args:
        truth, score: (pixels,) bool and floating point
    """
    if truth.all() or not truth.any():
        return dict.fromkeys(AREAS), None
    fpr, tpr, _ = metrics.roc_curve(truth, score)
    precision, recall, _ = metrics.precision_recall_curve(truth, score)
    values = (metrics.auc(fpr, tpr), metrics.auc(recall, precision), -np.sum(np.diff(recall) * precision[:-1]))
    curves = {
        "roc": thin_out(false_positive_rate=fpr, true_positive_rate=tpr),
        "pr": thin_out(recall=recall, precision=precision),
    }
    return dict(zip(AREAS, map(float, values))), curves


def thin_out(points: int = POINTS, **axes: np.ndarray) -> dict[str, list[float]]:
    """Returns at most `points` of a curve's points, at even steps along |dx| + |dy|, with both ends."""
    steps = sum(np.abs(np.diff(values)) for values in axes.values())
    along = np.concatenate([[0.0], np.cumsum(steps)])
    chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points - 1)).clip(max=len(along) - 1))
    chosen = np.unique([0, *chosen, len(along) - 1])
    return {name: values[chosen].tolist() for name, values in axes.items()}


def best_threshold(validation: Sequence[Prediction]) -> float:
    """Returns the threshold of the largest F1 over all pixels in the fields of view of all images together.

    F1 = 2 P R / (P + R) at every score that occurs, a pixel being a vessel where its score is at least the threshold;
    the lowest such threshold if several have the same F1.

    Raises:
        ValueError: no image, a repeated name, or no vessel pixel
    """
    check_set(validation, "threshold_from")
    truth, score = pool(validation, "field")
    if not truth.any():
        raise ValueError("expected vessel pixels in the fields of view of threshold_from, got none: F1 is 0 throughout")
    precision, recall, thresholds = metrics.precision_recall_curve(truth, score)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return float(thresholds[f1[:-1].argmax()])  # the last point is precision 1 at recall 0, without a threshold
