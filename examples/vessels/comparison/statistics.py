"""Statistics over images: Wilcoxon's signed-rank test against the reference, Holm's correction, medians, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

METRICS = {
    "f1": "F1",
    "roc_auc": "ROC area",
    "thin": "sensitivity of thin vessels",
    "thick": "sensitivity of thick vessels",
}
LEVEL = 0.05
RESAMPLES, SEED, CONFIDENCE = 10_000, 0, 0.95
Values = Sequence[Sequence[float | None]]  # a list for each seed, with a value for each image


def averaged(runs: Values) -> np.ndarray:
    """Returns the mean over seeds for each image, NaN where a seed lacks the value."""
    return np.array([[math.nan if v is None else v for v in run] for run in runs], dtype=float).mean(0)


def wilcoxon(difference: np.ndarray) -> float | None:
    """Returns the two-sided p of the signed-rank test, 1 if every difference is 0, None without images."""
    if not difference.size:
        return None
    return float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Returns Holm's adjusted p: with p rising, the largest so far of (m - i) p_i, i from 0, at most 1."""
    order = sorted((i for i, p in enumerate(values) if p is not None), key=lambda i: values[i])
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for position, i in enumerate(order):
        largest = max(largest, (len(order) - position) * values[i])
        adjusted[i] = min(largest, 1.0)
    return adjusted


def effect(difference: np.ndarray, resamples: int = RESAMPLES) -> dict[str, float | None]:
    """Returns the median difference and its percentile bootstrap interval over images; one image has no interval."""
    if not difference.size:
        return {"median": None, "low": None, "high": None}
    result: dict[str, float | None] = {"median": float(np.median(difference)), "low": None, "high": None}
    if difference.size > 1:
        drawn = np.random.default_rng(SEED).integers(difference.size, size=(resamples, difference.size))
        medians = np.median(difference[drawn], axis=1)
        low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        result |= {"low": float(low), "high": float(high)}
    return result


def compare(arms: Mapping[str, Mapping[str, Values]], reference: str, resamples: int = RESAMPLES) -> dict[str, dict]:
    """Returns for each arm and each of METRICS its mean and, but for the reference, the comparison with it.

    arms: the reference and the others, by name: for each metric a list for each seed with a value for each image, in
    one order. The result of an arm has for each metric "mean", over images and seeds, and for the others "median",
    "low", "high" of the difference arm - reference over images averaged over seeds, "p", "p_holm", corrected over the
    arms within a metric, "images", and "shown": p_holm is below LEVEL and the interval excludes 0.
    """
    results: dict[str, dict] = {name: {} for name in arms}
    others = [name for name in arms if name != reference]
    for metric in METRICS:
        means = {name: averaged(values[metric]) for name, values in arms.items()}
        for name, values in means.items():
            defined = values[np.isfinite(values)]
            results[name][metric] = {"mean": float(defined.mean()) if defined.size else None}
        differences = [means[name] - means[reference] for name in others]
        differences = [d[np.isfinite(d)] for d in differences]
        tests = [wilcoxon(d) for d in differences]
        for name, difference, p, adjusted in zip(others, differences, tests, holm(tests)):
            line = {**effect(difference, resamples), "p": p, "p_holm": adjusted, "images": int(difference.size)}
            results[name][metric] |= {**line, "shown": shown(line)}
    return results


def shown(line: Mapping) -> bool:
    """True if Holm's p is below LEVEL and the interval of the median difference excludes 0."""
    if line["p_holm"] is None or line["low"] is None:
        return False
    return line["p_holm"] < LEVEL and (line["low"] > 0 or line["high"] < 0)
