"""Grow the vessels of a synthetic fundus: branching trees of arteries and veins, from the optic disc outwards."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np

from .anatomy import ARTERY, LARGEST, SMALLEST, VEIN, Eye, Segment, angles, murray

STEP = 2.0  # pixels between two points of a centreline
SPACING = 6.0  # pixels; no two vessels of one kind come nearer than this, beside their radii
AVASCULAR = 24.0  # radius in pixels of the zone around the fovea that has no visible vessels


@dataclass(order=True)
class _Bud:
    """A vessel still to be grown; the thickest is grown first, as it claims its place."""

    key: float
    start: tuple[float, float] = field(compare=False)
    course: float = field(compare=False)  # direction without the waves of tortuosity
    wave: float = field(compare=False)
    radius: float = field(compare=False)
    kind: int = field(compare=False)
    parent: int = field(compare=False, default=-1)
    arcade: float = field(compare=False, default=0.0)  # half-axis ratio of the ellipse it follows; 0: none; sign: side


def grow(eye: Eye, rng: np.random.Generator) -> list[Segment]:
    """Returns the segments of all trees; a segment's parent stands before it."""
    return _Growth(eye, rng).run()


class _Growth:
    def __init__(self, eye: Eye, rng: np.random.Generator):
        self.eye, self.rng = eye, rng
        self.taken = np.zeros((2, *eye.shape), bool)  # by arteries, by veins
        self.segments: list[Segment] = []
        self.buds: list[_Bud] = []
        self.tortuosity = rng.uniform(0.7, 1.5)

    def run(self) -> list[Segment]:
        for bud in self._roots():
            heapq.heappush(self.buds, bud)
        while self.buds:
            bud = heapq.heappop(self.buds)
            points, course, wave, blocked = self._path(bud)
            if len(points) * STEP < 8:
                continue
            index = len(self.segments)
            self.segments.append(Segment(points, bud.radius, bud.kind, bud.parent))
            if bud.parent >= 0:
                self.segments[bud.parent].daughters.append(index)
            self._claim(points, bud)
            if not blocked:
                self._branch(bud, index, course, wave)
        for segment in self.segments:
            beyond = math.dist(segment.points[-1], self.eye.centre) > self.eye.radius - 4
            segment.ends = not segment.daughters and not beyond
        return self.segments

    def _roots(self) -> list[_Bud]:
        """Four arteries and four veins to the quadrants, and some small vessels straight from the disc."""
        rng, buds = self.rng, []
        radii = {(ARTERY, 1): (2.9, 4.0), (VEIN, 1): (3.6, LARGEST), (ARTERY, -1): (2.0, 2.8), (VEIN, -1): (2.4, 3.3)}
        for (kind, temporal), (low, high) in radii.items():
            for up in (1, -1):
                angle = rng.uniform(1.1, 1.5) if temporal > 0 else rng.uniform(2.1, 2.75)
                arcade = up * rng.uniform(0.42, 0.8) if temporal > 0 else 0.0
                buds.append(self._root(kind, up * angle, rng.uniform(low, high), arcade))
        for number in range(rng.integers(4, 7)):
            buds.append(self._root(number % 2, rng.uniform(-math.pi, math.pi), rng.uniform(1.0, 1.9), 0.0))
        return buds

    def _root(self, kind: int, angle: float, radius: float, arcade: float) -> _Bud:
        heading = angle if self.eye.side > 0 else math.pi - angle
        y, x = np.add(self.eye.disc, self.rng.normal(0, 5, 2))
        return _Bud(-radius, (float(y), float(x)), heading, 0.0, radius, kind, arcade=arcade)

    def _path(self, bud: _Bud) -> tuple[np.ndarray, float, float, bool]:
        """Returns the centreline to the next branching, course and wave there, and whether the vessel ends before."""
        rng, eye = self.rng, self.eye
        steps = max(5, int((28 + 6 * bud.radius) * rng.gamma(4, 0.25) / STEP))
        (y, x), course, wave, points, bend = bud.start, bud.course, bud.wave, [bud.start], 0.0
        wobble = self.tortuosity * 0.014 / (0.7 + 0.3 * bud.radius)
        free = bud.radius + SPACING + 3 if bud.parent >= 0 else eye.disc_radius
        for step in range(steps):
            bend = 0.85 * bend + rng.normal(0, wobble)
            wave = 0.97 * wave + STEP * bend
            course += self._steer(y, x, course, bud)
            heading = course + wave
            y, x = y - STEP * math.sin(heading), x + STEP * math.cos(heading)
            if self._outside(y, x) or (step * STEP > free and self._collides(y, x, bud)):
                return np.array(points), course, wave, True
            points.append((y, x))
        return np.array(points), course, wave, False

    def _outside(self, y: float, x: float) -> bool:
        beyond = math.hypot(y - self.eye.centre[0], x - self.eye.centre[1]) > self.eye.radius + 8
        inner = math.hypot(y - self.eye.fovea[0], x - self.eye.fovea[1]) < AVASCULAR
        return beyond or inner or not (0 <= y < self.eye.shape[0] and 0 <= x < self.eye.shape[1])

    def _collides(self, y: float, x: float, bud: _Bud) -> bool:
        """A vessel ends before one of its kind; a thin one also before one of the other kind, mostly."""
        here = self.taken[:, int(y), int(x)]
        return bool(here[bud.kind] or (here[1 - bud.kind] and bud.radius < 1.3 and self.rng.random() < 0.1))

    def _steer(self, y: float, x: float, course: float, bud: _Bud) -> float:
        """Returns the turn of one step towards where such a vessel runs: along an arcade, to the fovea, or outwards."""
        side, (fy, fx), (dy, dx) = self.eye.side, self.eye.fovea, self.eye.disc
        across, up = side * (x - fx), fy - y
        if bud.arcade:  # the tangent of an ellipse around the fovea, and a little outwards
            wide, sign = abs(bud.arcade), math.copysign(1.0, bud.arcade)
            tangent = (up * sign / wide, -across * sign * wide)
            norm, far = math.hypot(*tangent) + 1e-6, math.hypot(across, up) + 1e-6
            leave = 0.2 + max(0.0, across) / 120  # it does not close the ring
            aim = (tangent[0] / norm + leave * across / far, tangent[1] / norm + leave * up / far)
            gain = 0.07
        elif math.hypot(across, up * 1.3) < 130:  # between the arcades
            aim, gain = (-across, -up), 0.005
        else:
            aim, gain = (side * (x - dx), dy - y), 0.01
        turn = math.atan2(aim[1], side * aim[0]) - course
        return gain * math.remainder(turn, 2 * math.pi)

    def _branch(self, bud: _Bud, index: int, course: float, wave: float) -> None:
        """Adds the two daughters; one below the smallest radius is not seen, and is left out."""
        rng = self.rng
        side_branch = rng.random() < (0.88 if bud.arcade else 0.6)
        ratio = rng.uniform(0.25, 0.55) if side_branch else rng.uniform(0.6, 0.79)
        ratio = max(ratio, min(0.79, SMALLEST / bud.radius))
        r1, r2 = murray(bud.radius, ratio)
        a1, a2 = angles(bud.radius, r1, r2)
        hand = 1 if rng.random() < 0.5 else -1
        y, x = self.segments[index].points[-1]
        for radius, turn, arcade in ((r1, -hand * a1, bud.arcade), (r2, hand * a2 * rng.uniform(0.75, 1.0), 0.0)):
            if radius >= SMALLEST:
                bent = course + turn
                heapq.heappush(self.buds, _Bud(-radius, (y, x), bent, wave, radius, bud.kind, index, arcade))

    def _claim(self, points: np.ndarray, bud: _Bud) -> None:
        """Marks the surroundings of a centreline as taken; every second point is enough."""
        reach = math.ceil(bud.radius + SPACING)
        y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
        dy, dx = np.nonzero(np.hypot(y, x) <= bud.radius + SPACING)
        centres = points[::2].astype(int)
        y, x = centres[:, :1] + dy - reach, centres[:, 1:] + dx - reach
        inside = (y >= 0) & (x >= 0) & (y < self.eye.shape[0]) & (x < self.eye.shape[1])
        self.taken[bud.kind, y[inside], x[inside]] = True
