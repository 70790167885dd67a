"""Draw the surroundings of the vessels: illumination, choroid, optic disc, fovea, lesions."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .anatomy import Eye


def distances(eye: Eye, at: tuple[float, float], squeeze: float = 1.0) -> np.ndarray:
    """Returns (H, W): the distance of each pixel from a point (y, x); `squeeze` > 1 makes circles upright ellipses."""
    y, x = np.ogrid[: eye.shape[0], : eye.shape[1]]
    return np.hypot((y - at[0]) / squeeze, x - at[1])


def soft(distance: np.ndarray, radius: float, width: float) -> np.ndarray:
    """Returns 1 inside a radius and 0 outside, over a border of about `width` pixels."""
    return 1 / (1 + np.exp(np.clip((distance - radius) / width * 4, -60, 60)))


def smooth_noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Returns Gaussian noise of variance 1 that changes over `sigma` pixels, computed on a coarse grid."""
    step = max(1, int(sigma / 3))
    coarse = rng.normal(size=[-(-side // step) + 1 for side in shape])
    coarse = ndimage.gaussian_filter(coarse, sigma / step, mode="wrap")
    fine = ndimage.zoom(coarse, step, order=1) if step > 1 else coarse
    return fine[: shape[0], : shape[1]] / coarse.std()


def illumination(eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """Returns (H, W) around 1: darker to one side and to the border, uneven, brighter in a ring at the border."""
    y, x = (np.arange(side) - middle for side, middle in zip(eye.shape, eye.centre))
    angle, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.3)
    slope = tilt * (np.sin(angle) * y[:, None] + np.cos(angle) * x) / eye.radius
    out = np.hypot(y[:, None], x) / eye.radius
    ring = rng.uniform(0, 0.12) * np.exp(-(((out - 0.95) / 0.05) ** 2))
    return (1 - rng.uniform(0.1, 0.4) * out**2) * (1 + slope + 0.06 * smooth_noise(eye.shape, 60, rng)) + ring


def choroid(eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """Returns (H, W) around 0: a net of wide faint stripes, as the vessels behind the retina make; no ground truth."""
    net = 1 - np.abs(smooth_noise(eye.shape, rng.uniform(5, 8), rng))
    visible = np.clip(0.5 + 0.8 * smooth_noise(eye.shape, 70, rng), 0, 1)
    return rng.uniform(0.01, 0.045) * visible * net


def add_disc(image: np.ndarray, eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """Returns the image with the optic disc: pale with a soft border, paler in its cup, often with a dark crescent."""
    tall = rng.uniform(1.0, 1.15)
    far = distances(eye, eye.disc, tall) + 1.5 * smooth_noise(eye.shape, 15, rng)
    cup = distances(eye, (eye.disc[0], eye.disc[1] + eye.side * rng.uniform(-3, 6)), tall)
    halo = soft(far, eye.disc_radius * 1.25, 30) * rng.uniform(0.05, 0.15)
    pale = soft(far, eye.disc_radius, rng.uniform(5, 12)) * rng.uniform(0.5, 0.75)
    paler = soft(cup, eye.disc_radius * rng.uniform(0.35, 0.55), 9) * rng.uniform(0.15, 0.4)
    crescent = rng.uniform(0, 0.25) * np.exp(-(((far - eye.disc_radius * 1.1) / 4) ** 2))
    x = np.arange(eye.shape[1])
    image = image * (1 - crescent * (eye.side * (x - eye.disc[1]) > 0))[..., None]
    for weight, colour in ((halo + pale, (236.0, 178.0, 110.0)), (paler, (255.0, 232.0, 180.0))):
        image = image + np.clip(weight, 0, 1)[..., None] * (np.array(colour) - image)
    return image


def fovea(eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """Returns (H, W, 3): the optical density of the macula's pigment."""
    far = distances(eye, eye.fovea)
    wide = np.exp(-((far / rng.uniform(38, 60)) ** 2))
    return (rng.uniform(0.1, 0.3) * wide)[..., None] * np.array([0.5, 1.0, 0.9])


def dark_lesions(eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """Returns (H, W, 3): the optical density of haemorrhages, blots and flames, and of microaneurysms."""
    depth = np.zeros(eye.shape)
    for _ in range(rng.integers(2, 16)):
        _blob(depth, _place(eye, rng), rng.uniform(2, 8), rng.uniform(1, 3.5), rng.uniform(0.4, 1.0), rng)
    for _ in range(rng.integers(5, 30)):
        _blob(depth, _place(eye, rng), rng.uniform(0.8, 1.8), 1.0, rng.uniform(0.4, 0.9), rng)
    return depth[..., None] * np.array([0.18, 0.6, 0.42])


def bright_lesions(eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """Returns (H, W) in [0, 1]: hard exudates in groups, and soft exudates, both brighter than the retina."""
    light = np.zeros(eye.shape)
    for _ in range(rng.integers(1, 6)):
        group = _place(eye, rng)
        for _ in range(rng.integers(4, 25)):
            at = tuple(np.add(group, rng.normal(0, rng.uniform(5, 18), 2)))
            _blob(light, at, rng.uniform(0.8, 3.5), rng.uniform(1, 1.8), rng.uniform(0.25, 0.7), rng)
    for _ in range(rng.integers(0, 3)):
        _blob(light, _place(eye, rng), rng.uniform(6, 12), rng.uniform(1, 2), rng.uniform(0.1, 0.3), rng, border=4.0)
    return np.clip(light, 0, 1)


def _place(eye: Eye, rng: np.random.Generator) -> tuple[float, float]:
    """A random point of the field that is not on the optic disc."""
    while True:
        angle, out = rng.uniform(0, 2 * np.pi), eye.radius * 0.95 * np.sqrt(rng.uniform())
        at = (eye.centre[0] + out * np.sin(angle), eye.centre[1] + out * np.cos(angle))
        if np.hypot(at[0] - eye.disc[0], at[1] - eye.disc[1]) > 1.3 * eye.disc_radius:
            return at


def _blob(
    values: np.ndarray, at: tuple[float, float], radius: float, length: float, height: float,
    rng: np.random.Generator, border: float = 1.0,
) -> None:  # fmt: skip
    """Raises `values` to an ellipse with an uneven border, `length` times as long as wide, turned at random."""
    reach = int(radius * length + 3 * border + 3)
    top, left = (int(round(v)) - reach for v in at)
    window = tuple(slice(max(0, start), max(0, start + 2 * reach + 1)) for start in (top, left))
    part = values[window]
    if not part.size:
        return
    y, x = (place.start + np.arange(side) for place, side in zip(window, part.shape))
    angle, waves, phase = rng.uniform(0, np.pi), rng.integers(2, 6), rng.uniform(0, 2 * np.pi)
    dy, dx = y[:, None] - at[0], x - at[1]
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    far = np.hypot(along / length, across) + 0.15 * radius * np.sin(waves * np.arctan2(across, along) + phase)
    np.maximum(part, height * soft(far, radius, border), out=part)
