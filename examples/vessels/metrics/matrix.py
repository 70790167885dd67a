"""Scores of a confusion matrix: one matrix through scikit-learn, many at once as formulas for the bootstrap.

A matrix is [[tn, fp], [fn, tp]], as scikit-learn prints it; its counts are the array (tn, fp, fn, tp). A ratio 0/0 is
undefined: NaN in arrays, None in results, and never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from sklearn import metrics

from .prediction import Prediction

SCORES: Mapping[str, Callable] = {
    "accuracy": metrics.accuracy_score,
    "sensitivity": metrics.recall_score,
    "specificity": lambda *labels, **weights: metrics.recall_score(*labels, pos_label=0, **weights),
    "precision": metrics.precision_score,
    "f1": metrics.f1_score,
    "jaccard": metrics.jaccard_score,
    "mean_iou": lambda *labels, **weights: metrics.jaccard_score(*labels, average="macro", **weights),
    "mcc": metrics.matthews_corrcoef,
    "kappa": metrics.cohen_kappa_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
}


def count(truth: np.ndarray, predicted: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Returns (tn, fp, fn, tp) of the pixels inside; the three arguments are bool of one shape."""
    return np.bincount(2 * truth[inside] + predicted[inside], minlength=4).astype(float)


def count_at(image: Prediction, threshold: float, region: str) -> np.ndarray:
    """Returns (tn, fp, fn, tp) of an image; a pixel is a vessel where probability >= threshold."""
    return count(image.truth, image.probability >= threshold, image.inside(region))


def scores(counts: np.ndarray) -> dict[str, float | None]:
    """Returns each of SCORES for (tn, fp, fn, tp), None where it is undefined.

    With p = tp + fn, n = tn + fp, N = p + n:

        accuracy = (tp + tn) / N                    sensitivity = tp / p
        precision = tp / (tp + fp)                  specificity = tn / n
        f1 = 2 tp / (2 tp + fp + fn)                balanced_accuracy = (sensitivity + specificity) / 2
        jaccard = tp / (tp + fp + fn)               mean_iou = (jaccard + tn / (tn + fp + fn)) / 2
        kappa = (accuracy - e) / (1 - e)            with e = (p (tp + fp) + n (tn + fn)) / N^2
        mcc = (tp tn - fp fn) / sqrt(p n (tp + fp) (tn + fn))

    scikit-learn gets four pixels, one of each kind, with the counts as weights.

    Raises:
        ValueError: other than four finite numbers that are at least 0
    """
    counts = np.asarray(counts, dtype=float)
    if counts.shape != (4,) or not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError(f"expected counts (tn, fp, fn, tp), each finite and at least 0, got {counts.tolist()}")
    defined = {name: bool(np.isfinite(value)) for name, value in ratios(counts).items()}
    labels, weights = ([0, 0, 1, 1], [0, 1, 0, 1]), counts.tolist()
    # scikit-learn returns 0 for some undefined scores and warns for others; those are never asked for.
    return {
        name: float(score(*labels, sample_weight=weights)) if defined[name] else None for name, score in SCORES.items()
    }


def ratios(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns each of SCORES by the formulas in `scores`: (..., 4) counts -> (...) values, NaN where undefined."""
    tn, fp, fn, tp = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)  # float: MCC's products exceed int64
    p, n, marked, unmarked = tp + fn, tn + fp, tp + fp, tn + fn
    total = p + n
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = tp / p, tn / n
        jaccard = tp / (tp + fp + fn)
        # With p = n = 0 in one class and in the prediction alike, 1 - e is 0: kappa is undefined, as MCC is.
        chance = p * marked + n * unmarked
        return {
            "accuracy": (tp + tn) / total,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": tp / marked,
            "f1": 2 * tp / (2 * tp + fp + fn),
            "jaccard": jaccard,
            "mean_iou": (jaccard + tn / (tn + fp + fn)) / 2,
            "mcc": (tp * tn - fp * fn) / (np.sqrt(p * n) * np.sqrt(marked * unmarked)),
            "kappa": ((tp + tn) * total - chance) / (total**2 - chance),
            "balanced_accuracy": (sensitivity + specificity) / 2,
        }
