"""Thin and thick vessels: the width of the annotated vessel at each of its pixels.

The definition: the width at a pixel of the skeleton is twice the distance to the vessel's edge there, and every other
vessel pixel has the width of the nearest pixel of the skeleton. Thin is at most 3 pixels.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

THIN = 3.0  # pixels


def vessel_widths(truth: np.ndarray) -> np.ndarray:
    """Returns the width in pixels at each vessel pixel, 0 elsewhere: (H, W) bool -> (H, W) float.

    The mask is doubled first: its skeleton is one pixel wide, and only between the pixels lies the middle of a vessel
    of even width. In doubled pixels the distance d to the nearest pixel outside is the width in the original ones. So a
    line along an axis has its width exactly, of 3 and of 4 pixels too, which 2 d - 1 in the original pixels confuses. A
    vessel's end, where the skeleton runs into the corners, counts as thinner than it is, by up to half a width's
    length. A vessel that leaves the image keeps its width at the border.
    """
    widths = np.zeros(truth.shape)
    if not truth.any():
        return widths
    if truth.all():
        return np.full(truth.shape, np.inf)  # no edge
    doubled = truth.repeat(2, axis=0).repeat(2, axis=1)
    distance = ndimage.distance_transform_edt(doubled)
    skeleton = skeletonize(doubled)
    rows, columns = ndimage.distance_transform_edt(~skeleton, return_distances=False, return_indices=True)
    widths[truth] = distance[rows, columns][::2, ::2][truth]
    return widths


def width_classes(truth: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {"thin", "thick"}: bool masks of the vessel pixels of width at most THIN, and of the others."""
    widths = vessel_widths(truth)
    return {"thin": truth & (widths <= THIN), "thick": truth & (widths > THIN)}
