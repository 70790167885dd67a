"""Every figure of a set of predictions as one dict, ready for JSON: regions, pooled and mean, thresholds, intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .curves import AREAS, areas, best_threshold
from .matrix import count, count_at, ratios, scores
from .notes import notes
from .prediction import REGIONS, Prediction, check_set, pool
from .resampling import BINS, Bootstrap, Histogram
from .vessel_width import width_classes

HALF = 0.5
Masks = Sequence[Mapping[str, np.ndarray]]


def evaluate(
    predictions: Sequence[Prediction],
    threshold_from: Sequence[Prediction] | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    bins: int = BINS,
) -> dict:
    """Returns every figure of the predictions, in plain dicts, lists, strings and numbers; undefined figures are None.

    A figure is {"value", "low", "high"}, with the percentile bootstrap interval over images (`Bootstrap`); a mean over
    images has "images" too, the number of those in which it is defined.

    Args:
        predictions: the images, of different names
        threshold_from: validation images; their threshold of the largest F1 is used beside 0.5. None: 0.5 alone

    Returns:
        "images": names
        "bootstrap": "resamples", "confidence", "seed"
        "thresholds": {"half": 0.5, "validation": a number or None}
        "notes": sentences on undefined figures and missing annotations
        "regions": {"field": a region, "all": a region}. A region has
            "pixels", "vessels", "prevalence": numbers of pixels, and vessels / pixels
            "areas": "pooled", "mean", "per_image" with each of AREAS; "curves": "roc" and "pr", each two lists, or
                None; "binning": "bins" and "roc_error", the bins behind the intervals (`Histogram`)
            "half", "validation" (None without threshold_from): "pooled", "mean", "per_image" with each of SCORES,
                "confusion_matrix" of the pooled counts, and "thin" and "thick": "pooled", "mean", "per_image" with
                "sensitivity", "pixels" (`vessel_width`)
            "background": the same for the trivial prediction of no vessel anywhere, without "thin" and "thick"
            "second": the same for the second annotator, of the images that have one; None if none has
        "per_image" has a list per figure, in the order of "images".

    Raises:
        ValueError: no image, a repeated name, or no vessel pixel in threshold_from
    """
    check_set(predictions, "predictions")
    validation = None if threshold_from is None else best_threshold(threshold_from)
    bootstrap = Bootstrap(len(predictions), resamples, confidence, seed)
    masks = [width_classes(image.truth) for image in predictions]
    thresholds = {"half": HALF, "validation": validation}
    regions = {name: _region(predictions, name, thresholds, masks, bootstrap, bins) for name in REGIONS}
    names = [image.name for image in predictions]
    return {
        "images": names,
        "bootstrap": {"resamples": resamples, "confidence": confidence, "seed": seed},
        "thresholds": thresholds,
        "notes": notes(names, regions),
        "regions": regions,
    }


def _region(predictions, region: str, thresholds: dict, masks: Masks, bootstrap: Bootstrap, bins: int) -> dict:
    totals = np.array([count(image.truth, image.truth, image.inside(region)) for image in predictions])
    pixels, vessels = totals.sum(), totals[:, 3].sum()
    result = {"pixels": int(pixels), "vessels": int(vessels), "prevalence": float(vessels / pixels)}
    result["areas"] = _areas(predictions, region, bootstrap, bins)
    for name, threshold in thresholds.items():
        result[name] = None if threshold is None else _at(predictions, region, threshold, masks, bootstrap)
    nothing = [np.zeros_like(image.truth) for image in predictions]
    result["background"] = _annotation(predictions, nothing, region, bootstrap)
    second = [image.second for image in predictions]
    result["second"] = (
        _annotation(predictions, second, region, bootstrap) if any(s is not None for s in second) else None
    )
    return result


def _areas(predictions, region: str, bootstrap: Bootstrap, bins: int) -> dict:
    pooled, curves = areas(*pool(predictions, region))
    histogram = Histogram(predictions, region, bins)
    samples = histogram.samples(bootstrap.draws)
    images = [areas(*pool([image], region))[0] for image in predictions]
    per_image = {name: [image[name] for image in images] for name in AREAS}
    return {
        "pooled": {name: bootstrap.figure(pooled[name], samples[name]) for name in AREAS},
        "mean": {name: bootstrap.mean(values) for name, values in per_image.items()},
        "per_image": per_image,
        "curves": curves,
        "binning": {"bins": len(histogram.lowest), "roc_error": histogram.roc_error()},
    }


def _at(predictions, region: str, threshold: float, masks: Masks, bootstrap: Bootstrap) -> dict:
    result = _matrices(np.array([count_at(image, threshold, region) for image in predictions]), bootstrap)
    for name in ("thin", "thick"):
        marked = [
            (image.probability >= threshold)[mask[name] & image.inside(region)]
            for image, mask in zip(predictions, masks)
        ]
        counts = np.array([(pixels.sum(), pixels.size) for pixels in marked], dtype=float)
        result[name] = {**_figures(counts, _fraction, _one_fraction, bootstrap), "pixels": int(counts[:, 1].sum())}
    return result


def _annotation(predictions, marked: Sequence[np.ndarray | None], region: str, bootstrap: Bootstrap) -> dict:
    """The figures of masks in place of predictions; an image without one has no pixels, and so no figure."""
    pairs = zip(predictions, marked)
    counts = [np.zeros(4) if m is None else count(image.truth, m, image.inside(region)) for image, m in pairs]
    return _matrices(np.array(counts), bootstrap)


def _matrices(counts: np.ndarray, bootstrap: Bootstrap) -> dict:
    matrix = counts.sum(0).astype(int).reshape(2, 2).tolist()
    return {"confusion_matrix": matrix, **_figures(counts, ratios, scores, bootstrap)}


def _figures(counts: np.ndarray, many: Callable, one: Callable, bootstrap: Bootstrap) -> dict:
    """Pooled, mean and per image: (images, k) counts; `many` takes the counts of all resamples, `one` those of one."""
    samples = many(bootstrap.draws @ counts)
    images = [one(image) for image in counts]
    per_image = {name: [image[name] for image in images] for name in samples}
    return {
        "pooled": {name: bootstrap.figure(value, samples[name]) for name, value in one(counts.sum(0)).items()},
        "mean": {name: bootstrap.mean(values) for name, values in per_image.items()},
        "per_image": per_image,
    }


def _fraction(counts: np.ndarray) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore"):
        return {"sensitivity": counts[..., 0] / counts[..., 1]}


def _one_fraction(counts: np.ndarray) -> dict[str, float | None]:
    return {"sensitivity": float(counts[0] / counts[1]) if counts[1] else None}
