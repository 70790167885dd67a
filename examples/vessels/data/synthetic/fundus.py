"""Make synthetic fundus images of DRIVE's size with exact ground truth, from a seed.

They are for tests, and for machines without a data set. They are not photographs: every Sample of this file has
`synthetic` set, and no number on them compares with a published one.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..sample import Sample
from . import background, scene, vessels
from .anatomy import ARTERY, VEIN, Eye
from .tree import grow

SHAPE, CENTRE, RADIUS = (584, 565), (291.5, 282.0), 270.0  # the image and its field of view, as in DRIVE
SPLITS = {"train": 0, "test": 1}  # their images come from different seeds
COUNT = 20  # images of a split, as in DRIVE


def generate(split: str, count: int = COUNT, seed: int = 0) -> list[Sample]:
    """Returns `count` images of a split; image i is the same for every count."""
    source = f"synthetic fundus images, {split}, seed {seed}"
    return [sample(f"synthetic_{split}_{i:02d}", source, (seed, SPLITS[split], i)) for i in range(count)]


def vessels_of(key: tuple[int, int, int]) -> tuple[Eye, np.ndarray, dict[int, vessels.Drawn]]:
    """Returns the eye of (seed, split, number), its vessels' truth (H, W), and arteries and veins as drawn."""
    rng = np.random.default_rng((*key, 0))
    eye = eye_of(rng)
    segments = grow(eye, rng)
    drawn = {kind: vessels.draw(segments, kind, SHAPE, rng) for kind in (ARTERY, VEIN)}
    field = scene.distances(eye, CENTRE) <= RADIUS
    return eye, (drawn[ARTERY].covered | drawn[VEIN].covered) & field, drawn


def sample(name: str, source: str, key: tuple[int, int, int]) -> Sample:
    """Returns the image of (seed, split, number)."""
    eye, truth, drawn = vessels_of(key)
    scene_rng, noise_rng = (np.random.default_rng((*key, stream)) for stream in (1, 2))
    blood = sum(vessels.density(drawn[kind], kind) for kind in drawn)
    clear = _retina(eye, scene_rng) * np.exp(-scene_rng.uniform(0.75, 1.1) * blood)
    image = _photograph(clear, eye, noise_rng)
    field = scene.distances(eye, CENTRE) <= RADIUS
    return Sample(name, image, truth, None, field, synthetic=True, source=source)


def eye_of(rng: np.random.Generator) -> Eye:
    """Returns a left or a right eye, with the macula near the middle of the image, as in DRIVE."""
    side = 1 if rng.random() < 0.5 else -1
    disc = (CENTRE[0] + rng.uniform(-25, 25), CENTRE[1] - side * rng.uniform(165, 205))
    fovea = (disc[0] + rng.uniform(0, 25), disc[1] + side * rng.uniform(185, 215))
    return Eye(SHAPE, CENTRE, RADIUS, disc, rng.uniform(34, 42), fovea)


def _retina(eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3): the light that the retina without vessels reflects, in grey levels."""
    base = np.array([rng.uniform(165, 225), rng.uniform(85, 125), rng.uniform(40, 75)])
    grain = 1 + rng.uniform(0.8, 1.4) * background.turned(rng, SHAPE)
    tint = 1 - scene.choroid(eye, rng)[..., None] * np.array([0.6, 1.2, 1.0])
    image = scene.add_disc(base * grain * tint, eye, rng) * np.exp(-scene.fovea(eye, rng))
    if rng.random() < 0.5:
        image = image * np.exp(-scene.dark_lesions(eye, rng))
    if rng.random() < 0.4:
        light = scene.bright_lesions(eye, rng)[..., None]
        image = image + light * (np.array([250.0, 220.0, 140.0]) - image)
    return image * scene.illumination(eye, rng)[..., None]


def _photograph(clear: np.ndarray, eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: what a camera makes of it: blur, noise of light and of sensor, the border of the field."""
    blur, haze = rng.uniform(0.6, 0.95), np.clip(0.08 + 0.08 * scene.smooth_noise(SHAPE, 80, rng), 0, 0.35)[..., None]
    sharp = np.stack([ndimage.gaussian_filter(clear[..., c], blur) for c in range(3)], 2)
    soft = np.stack([ndimage.gaussian_filter(clear[..., c], 3.0) for c in range(3)], 2)
    image = sharp + haze * 2 * (soft - sharp)
    seen = scene.soft(scene.distances(eye, CENTRE), RADIUS - 0.5, 1.5)[..., None]
    image = image * seen + np.array([5.0, 4.0, 4.0]) * (1 - seen)
    noise = rng.normal(size=image.shape)
    grain = np.stack([ndimage.gaussian_filter(rng.normal(size=SHAPE), 0.8) * 2.8 for _ in range(3)], 2)
    strength = rng.uniform(0.7, 1.3) * np.sqrt(0.5 + np.maximum(image, 0) * 0.06)
    return np.clip(np.rint(image + strength * (0.5 * noise + 0.8 * grain)), 0, 255).astype(np.uint8)
