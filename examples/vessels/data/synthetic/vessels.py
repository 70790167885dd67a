"""Draw grown vessels: their ground truth, and the light that they absorb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .anatomy import ARTERY, SMALLEST, VEIN, Segment

SAMPLING = 0.6  # pixels between two points of a centreline when it is drawn
SATURATION = 2.8  # pixels of blood after which a vessel is as dark as it gets: light comes in from its sides
# Optical density of much blood in red, green and blue: blood absorbs green most, and venous blood more of the red.
DENSITY = {ARTERY: np.array([0.05, 0.46, 0.34]), VEIN: np.array([0.13, 0.64, 0.46])}
REFLEX = {ARTERY: 0.55, VEIN: 0.22}  # fraction of the density that the stripe of reflected light on the axis takes away


@dataclass(frozen=True)
class Drawn:
    """The nearest vessel of a kind at each pixel: distance to its axis and its radius in pixels, contrast around 1."""

    distance: np.ndarray
    radius: np.ndarray
    contrast: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        return self.distance <= self.radius


def draw(segments: Sequence[Segment], kind: int, shape: tuple[int, int], rng: np.random.Generator) -> Drawn:
    """Returns the vessels of a kind. Pixels without one have radius 0 and an infinite distance."""
    pixels, ratio, radius, contrast = _stamps([s for s in segments if s.kind == kind], shape, rng)
    nearest = np.full(shape[0] * shape[1], np.inf)
    np.minimum.at(nearest, pixels, ratio)
    first = ratio == nearest[pixels]
    radii, contrasts = np.zeros_like(nearest), np.ones_like(nearest)
    radii[pixels[first]], contrasts[pixels[first]] = radius[first], contrast[first]
    distance = np.where(radii > 0, nearest * np.maximum(radii, 1e-9), np.inf)
    return Drawn(*(values.reshape(shape) for values in (distance, radii, contrasts)))


def density(drawn: Drawn, kind: int) -> np.ndarray:
    """Returns (H, W, 3): the optical density of the vessels, D = -log(transmitted light), by Beer and Lambert.

    A cylinder of blood is 2 sqrt(r^2 - d^2) thick at the distance d from its axis. Pixels at the border count by the
    part of them that is covered.
    """
    r, d = drawn.radius, np.minimum(drawn.distance, 99.0)
    border = np.clip(r + 0.5 - d, 0, 1) * (r > 0)
    thick = 2 * np.sqrt(np.maximum(r**2 - d**2, 0.15 * r**2))
    absorbed = border * (1 - np.exp(-thick / SATURATION)) * drawn.contrast
    width = np.maximum(0.32 * r, 0.5)
    reflex = REFLEX[kind] * np.exp(-((d / width) ** 2)) * np.clip((r - 1.4) / 1.2, 0, 1)
    return (absorbed * (1 - reflex))[..., None] * DENSITY[kind]


def _stamps(segments: Sequence[Segment], shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Returns flat arrays with an entry for each pixel near each point: pixel, distance / radius, radius, contrast."""
    parts = [[np.zeros(0, int)], [np.zeros(0)], [np.zeros(0)], [np.zeros(0)]]
    for segment in segments:
        points = _resample(segment.points)
        last = min(SMALLEST, segment.radius) if segment.ends else segment.radius
        r = np.linspace(segment.radius, last, len(points))[:, None]
        reach = int(np.ceil(segment.radius + 0.5))
        offsets = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, 1, -1)
        y, x = np.rint(points.T).astype(int)[:, :, None] + offsets
        distance = np.hypot(y - points[:, :1], x - points[:, 1:])
        use = (distance <= r + 0.5) & (y >= 0) & (x >= 0) & (y < shape[0]) & (x < shape[1])
        contrast = rng.uniform(0.85, 1.15) if segment.radius > 1.3 else rng.uniform(0.65, 1.2)
        r = np.broadcast_to(r, use.shape)[use]
        values = (y[use] * shape[1] + x[use], distance[use] / r, r, np.full(len(r), contrast))
        for part, value in zip(parts, values):
            part.append(value)
    return tuple(np.concatenate(part) for part in parts)


def _resample(points: np.ndarray) -> np.ndarray:
    """Returns a polyline's points at distances of SAMPLING."""
    lengths = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    at = np.arange(0, lengths[-1] + SAMPLING, SAMPLING)
    return np.stack([np.interp(at, lengths, points[:, axis]) for axis in (0, 1)], 1)
