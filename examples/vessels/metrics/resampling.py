"""Bootstrap intervals: whole images are drawn with replacement, since the pixels of one image are not independent.

All resamples are computed at once. Scores of a confusion matrix come from counts per image, and so are exact; the areas
under pooled curves come from histograms per image (`Histogram`), which treat scores of one bin as equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .curves import AREAS
from .prediction import Prediction, pool

BINS = 2**14
CHUNK = 64  # resamples at a time: 2 * 64 * 2**14 numbers are 16 MiB


class Bootstrap:
    """The drawn images of every resample, and percentile intervals; one instance serves every figure of a set.

    draws: (resamples, images), how often each image is in each resample. A resample in which a figure is undefined is
    left out of its interval. One image has no interval.
    """

    def __init__(self, images: int, resamples: int = 1000, confidence: float = 0.95, seed: int = 0):
        if resamples < 1 or not 0 < confidence < 1:
            raise ValueError(f"expected resamples >= 1 and 0 < confidence < 1, got {resamples} and {confidence}")
        self.confidence = confidence
        self.draws = np.random.default_rng(seed).multinomial(images, [1 / images] * images, resamples).astype(float)

    def interval(self, samples: np.ndarray) -> tuple[float | None, float | None]:
        """Returns the quantiles (1 - confidence) / 2 and (1 + confidence) / 2 of the defined samples."""
        samples = samples[np.isfinite(samples)]
        if self.draws.shape[1] == 1 or not samples.size:
            return None, None
        low, high = np.quantile(samples, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return float(low), float(high)

    def figure(self, value: float | None, samples: np.ndarray) -> dict:
        """Returns {"value", "low", "high"}; an undefined value has no interval either."""
        low, high = self.interval(samples) if value is not None else (None, None)
        return {"value": value, "low": low, "high": high}

    def mean(self, values: Sequence[float | None]) -> dict:
        """Returns the figure of the mean over the images in which the value is defined, and their number, "images"."""
        numbers = np.array([np.nan if value is None else value for value in values])
        defined = np.isfinite(numbers)
        with np.errstate(invalid="ignore"):
            samples = self.draws @ np.where(defined, numbers, 0) / (self.draws @ defined)
        value = float(numbers[defined].mean()) if defined.any() else None
        return {**self.figure(value, samples), "images": int(defined.sum())}


class Histogram:
    """Scores of vessel pixels and of others, counted per image in common bins.

    The bins hold equal numbers of pixels of all images together, so that no range of scores is too coarse; equal scores
    share a bin. If there are no more different scores than bins, each has its own and the areas are exact. Otherwise
    the ROC area differs by at most half the fraction of pairs (vessel, other) whose two scores share a bin:
    `roc_error`.

    counts: (2, images, bins), of others and of vessels, scores rising.
    """

    def __init__(self, predictions: Sequence[Prediction], region: str, bins: int = BINS):
        if bins < 2:
            raise ValueError(f"expected bins >= 2, got {bins}")
        ordered = np.sort(pool(predictions, region)[1])
        distinct = ordered[np.append(True, ordered[1:] != ordered[:-1])]
        self.exact = len(distinct) <= bins
        even = ordered[np.arange(bins) * len(ordered) // bins]
        self.lowest = distinct if self.exact else np.unique(even)  # the lowest score of each bin
        self.counts = np.stack([self._count(image, region) for image in predictions], axis=1)

    def _count(self, image: Prediction, region: str) -> np.ndarray:
        inside = image.inside(region)
        bins = np.searchsorted(self.lowest, image.probability[inside], side="right") - 1
        truth, size = image.truth[inside], len(self.lowest)
        return np.stack([np.bincount(bins[truth == kind], minlength=size) for kind in (False, True)]).astype(float)

    def roc_error(self) -> float | None:
        """Returns the largest possible difference of the ROC area from the exact one, all images together."""
        others, vessels = self.counts.sum(1)
        pairs = others.sum() * vessels.sum()
        if not pairs:
            return None
        return 0.0 if self.exact else float(others @ vessels / pairs / 2)

    def samples(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Returns each of AREAS for (resamples, images) draws: (resamples,), NaN without pixels of both classes."""
        chunks = [draws[start : start + CHUNK] for start in range(0, len(draws), CHUNK)]
        parts = [binned_areas(chunk @ self.counts[0], chunk @ self.counts[1]) for chunk in chunks]
        return {name: np.concatenate([part[name] for part in parts]) for name in AREAS}


def binned_areas(others: np.ndarray, vessels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns each of AREAS as in `areas`: two (resamples, bins) counts, scores rising -> (resamples,)."""
    fp, tp = (np.cumsum(counts[:, ::-1], axis=1) for counts in (others, vessels))
    step = vessels[:, ::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        # A vessel pixel is above all others that come later, and level with half of those in its own bin.
        above = (step * (fp[:, -1:] - fp + others[:, ::-1] / 2)).sum(1) / (fp[:, -1] * tp[:, -1])
        precision = np.where(tp + fp > 0, tp / (tp + fp), 1.0)  # before the first pixel it is 1, as in scikit-learn
        before = np.concatenate([np.ones_like(precision[:, :1]), precision[:, :-1]], axis=1)
        average = (step * precision).sum(1) / tp[:, -1]
        trapezoid = (step * (precision + before)).sum(1) / 2 / tp[:, -1]
    undefined = (fp[:, -1] == 0) | (tp[:, -1] == 0)
    return {name: np.where(undefined, np.nan, value) for name, value in zip(AREAS, (above, trapezoid, average))}
