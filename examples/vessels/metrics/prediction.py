"""One evaluated image: a probability for each pixel beside the annotations; the metrics read nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

REGIONS = ("field", "all")


@dataclass(frozen=True, eq=False)
class Prediction:
    """An image's probabilities and annotations, all (H, W).

    Args:
        name: names the image in results and errors
        probability: floating point, of a vessel, in [0, 1]
        truth: bool, the vessels of the first annotator
        field: bool, the field of view
        second: bool, the vessels of a second annotator, or None

    Raises:
        TypeError: an array of another type
        ValueError: another shape, a probability outside [0, 1], or an empty field of view
    """

    name: str
    probability: np.ndarray
    truth: np.ndarray
    field: np.ndarray
    second: np.ndarray | None = None

    def __post_init__(self) -> None:
        self._check_types()
        shape = self.probability.shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"image {self.name}: expected probability of shape (H, W), got {shape}")
        for name, mask in self._masks().items():
            if mask.shape != shape:
                raise ValueError(f"image {self.name}: expected {name} of probability's shape {shape}, got {mask.shape}")
        low, high = self.probability.min(), self.probability.max()
        if not 0 <= low <= high <= 1:  # false for NaN too
            raise ValueError(f"image {self.name}: expected probability in [0, 1], got values from {low} to {high}")
        if not self.field.any():
            raise ValueError(f"image {self.name}: expected a field of view with at least one pixel, got none")

    def _check_types(self) -> None:
        if not (isinstance(self.probability, np.ndarray) and np.issubdtype(self.probability.dtype, np.floating)):
            got = getattr(self.probability, "dtype", type(self.probability).__name__)
            raise TypeError(f"image {self.name}: expected probability as a floating point numpy array, got {got}")
        for name, mask in self._masks().items():
            if not (isinstance(mask, np.ndarray) and mask.dtype == bool):
                got = getattr(mask, "dtype", type(mask).__name__)
                raise TypeError(f"image {self.name}: expected {name} as a numpy array of bool, got {got}")

    def _masks(self) -> dict[str, np.ndarray]:
        masks = {"truth": self.truth, "field": self.field}
        return masks if self.second is None else {**masks, "second": self.second}

    def inside(self, region: str) -> np.ndarray:
        """Returns the pixels that count, (H, W) bool: the field of view for "field", every pixel for "all"."""
        if region not in REGIONS:
            raise ValueError(f"expected region as one of {', '.join(REGIONS)}, got {region!r}")
        return self.field if region == "field" else np.ones_like(self.field)


def pool(predictions: Sequence[Prediction], region: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns truth and probability of the region's pixels of all images, one after another: two (pixels,) arrays."""
    inside = [image.inside(region) for image in predictions]
    truth = np.concatenate([image.truth[mask] for image, mask in zip(predictions, inside)])
    return truth, np.concatenate([image.probability[mask] for image, mask in zip(predictions, inside)])


def check_set(predictions: Sequence[Prediction], name: str) -> None:
    """Raises ValueError unless there are images, each with a name of its own."""
    if not predictions:
        raise ValueError(f"expected {name} with at least one image, got none")
    names = [image.name for image in predictions]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"expected images of different names in {name}, got {', '.join(repeated)} more than once")
