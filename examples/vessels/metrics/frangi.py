"""Frangi's vesselness filter, by scikit-image: the baseline without training that a model is compared with."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, stats
from skimage import filters

SIGMAS = (1.0, 2.0, 3.0, 4.0)  # pixels; vessels of radius 0.7 to 6


def frangi(image: np.ndarray, field: np.ndarray | None = None) -> np.ndarray:
    """Returns (H, W) float64 in [0, 1]: the rank of a pixel's vesselness among the pixels of the field.

    Vesselness is the largest over sigma of exp(-(l1 / l2)^2 / (2 beta^2)) (1 - exp(-(l1^2 + l2^2) / (2 gamma^2))) for
    bright ridges of the inverted green channel, with the Hessian's eigenvalues |l1| <= |l2| (Frangi et al., 1998).
    Ranks keep the order within an image, and so its ROC area, and make images comparable, since gamma depends on the
    image; equal values have their mean rank. The score is not a probability: only a threshold chosen on validation
    means anything.

    Args:
        image: (H, W, 3) uint8, or floating point in [0, 1]
        field: (H, W) bool, the field of view; None is every pixel. Outside the score is 0.

    Raises:
        ValueError: an image or a field of another shape or type
    """
    if image.ndim != 3 or image.shape[2] != 3 or not (image.dtype == np.uint8 or image.dtype.kind == "f"):
        raise ValueError(f"expected image (H, W, 3) of uint8 or floating point, got {image.shape} of {image.dtype}")
    field = np.ones(image.shape[:2], dtype=bool) if field is None else field
    if field.shape != image.shape[:2] or field.dtype != bool or not field.any():
        raise ValueError(
            f"expected field of shape {image.shape[:2]}, bool, not empty, got {field.shape} of {field.dtype}"
        )
    green = image[..., 1] / (255.0 if image.dtype == np.uint8 else 1.0)
    # Beside the rim, a strong edge, the filter misses vessels: outside, the nearest pixel inside is repeated.
    nearest = ndimage.distance_transform_edt(~field, return_distances=False, return_indices=True)
    response = filters.frangi((1 - green)[tuple(nearest)], sigmas=SIGMAS, black_ridges=False, mode="reflect")
    score = np.zeros(field.shape)
    score[field] = stats.rankdata(response[field]) / field.sum()
    return score
