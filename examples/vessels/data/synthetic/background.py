"""The fundus without its vessels: texture of scikit-image's photograph retina.jpg, from which its own are removed."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from ..sample import DataError

SIDE = 565  # the photograph's 1411 pixels; its field of view of radius 693 becomes one of about 277
INNER = 262  # radius that is used; the rest is border, and mirrored
SMOOTH = 16.0  # standard deviation of the Gaussian that separates illumination from texture, in pixels


def photograph() -> Path:
    """Returns the path of retina.jpg. It is read as a file: importing skimage.data may look for a download."""
    package = importlib.util.find_spec("skimage")
    for folder in (package.submodule_search_locations if package else None) or ():
        path = Path(folder) / "data" / "retina.jpg"
        if path.is_file():
            return path
    raise DataError("synthetic images need the photograph data/retina.jpg of scikit-image: pip install scikit-image")


@lru_cache(maxsize=1)
def texture() -> np.ndarray:
    """Returns (SIDE, SIDE, 3) float32: the texture around 0, relative to the local brightness of each channel.

    Vessels, optic disc and border are replaced by texture from elsewhere in the photograph.
    """
    with Image.open(photograph()) as opened:
        image = np.asarray(opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    inside = np.hypot(y, x) < INNER
    keep = inside & ~_vessels(image[..., 1], inside) & ~_spots(image[..., 1], inside)
    low = np.stack([_blur(image[..., c], keep, SMOOTH) for c in range(3)], 2)
    relative = (image / np.maximum(low, 1) - 1) * keep[..., None]
    result = _copy_into(relative, keep).astype(np.float32)
    result.flags.writeable = False  # it is cached
    return result


def turned(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Returns (*shape, 3): the texture at a random angle, scale and offset, perhaps mirrored, without borders."""
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.25)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[:, 1] *= rng.choice([-1, 1])
    centre = SIDE / 2 + rng.uniform(-40, 40, 2)
    offset = centre - matrix @ (np.array(shape) / 2)
    # Linear interpolation: the texture gets smoother by it, but a spline would take most of an image's time.
    channels = [
        ndimage.affine_transform(texture()[..., c], matrix, offset, shape, order=1, mode="mirror") for c in range(3)
    ]
    return np.stack(channels, 2)


def _blur(values: np.ndarray, keep: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean over the kept pixels alone."""
    weight = ndimage.gaussian_filter(keep.astype(np.float32), sigma)
    return ndimage.gaussian_filter(values * keep, sigma) / np.maximum(weight, 1e-6)


def _vessels(green: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The photograph's vessels with a margin: pixels darker than their closing by a disc wider than any vessel."""
    values = np.where(inside, green, np.median(green[inside]))
    smooth = ndimage.gaussian_filter(values, 1.0)
    y, x = np.mgrid[-8:9, -8:9]
    depth = ndimage.grey_closing(smooth, footprint=np.hypot(y, x) <= 8) - smooth
    dark, near = depth > 9, depth > 5
    labels, count = ndimage.label(near, np.ones((3, 3)))
    sizes = ndimage.sum_labels(near, labels, range(count + 1))
    strong = np.isin(labels, np.unique(labels[dark])) & (sizes[labels] > 25)
    return ndimage.binary_dilation(strong, iterations=3)


def _spots(green: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The optic disc and the fovea: what is much brighter or darker than the rest, with a margin."""
    smooth = ndimage.gaussian_filter(green, 4)
    middle = np.median(smooth[inside])
    spots = inside & ((smooth > middle + 40) | (smooth < middle - 18))
    far = ndimage.distance_transform_edt(~ndimage.binary_opening(spots, iterations=4))
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    return far <= np.where(np.hypot(y, x) < 60, 40, 18)  # the fovea, in the middle, fades slowly


def _copy_into(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Fills what is not kept with the pixels at the nearest of some fixed shifts, so that the grain stays real."""
    values, keep = values.copy(), keep.copy()
    rng = np.random.default_rng(0)
    for reach in np.linspace(35, 260, 60):
        angle = rng.uniform(0, 2 * np.pi)
        shift = (int(reach * np.sin(angle)), int(reach * np.cos(angle)))
        source = np.roll(values, shift, (0, 1))
        fill = ~keep & np.roll(keep, shift, (0, 1))
        values[fill], keep[fill] = source[fill], True
    return values
