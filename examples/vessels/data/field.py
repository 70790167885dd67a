"""Estimate the field of view of a fundus image that ships without one: CHASE_DB1, STARE, photographs of one's own."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.morphology import convex_hull_image

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
RISE = 0.15  # the field begins at this part of the way from the surround's level to the brightest pixels'
DARK = 45  # grey levels; a surround is never brighter


def estimate(image: np.ndarray) -> np.ndarray:
    """Returns (H, W) bool: the convex hull of the largest bright region, without holes.

    image: (H, W, 3) uint8. The threshold lies above the level of the corners, which a camera leaves dark. An image with
    bright corners has no surround: all of it is its field. The estimate is a pixel or two off the published masks at
    the border, and so are figures that depend on it.
    """
    grey = image @ LUMINANCE
    side = max(2, min(grey.shape) // 40)
    corners = [np.median(part) for rows in (grey[:side], grey[-side:]) for part in (rows[:, :side], rows[:, -side:])]
    dark = min(corners)
    threshold = dark + max(6.0, RISE * (np.percentile(grey, 95) - dark))
    bright = grey > threshold
    if dark > DARK or sorted(corners)[2] > threshold or not bright.any():
        return np.ones(grey.shape, bool)
    labels, _ = ndimage.label(ndimage.binary_opening(bright, iterations=2, border_value=1) & bright)
    sizes = np.bincount(labels.ravel())
    if len(sizes) < 2:
        return np.ones(grey.shape, bool)
    region = labels == 1 + int(np.argmax(sizes[1:]))
    # The hull fills what lies in the shade at the border, and holes; a field of view is convex, also where it is cut.
    return convex_hull_image(region)
