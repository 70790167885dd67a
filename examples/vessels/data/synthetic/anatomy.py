"""Describe an eye's fundus and its vessels, with the laws that their branchings obey.

A branching obeys Murray's law, r0^3 = r1^3 + r2^3, and the daughters leave at the angles of least work that follow from
it: cos a1 = (r0^4 + r1^4 - r2^4) / (2 r0^2 r1^2), and likewise for the other one (C. D. Murray, "The physiological
principle of minimum work", PNAS 12, 1926, and "applied to the angle of branching of arteries", J. Gen. Physiol. 9,
1926). Lengths and radii are in pixels of an image of 584x565, angles in radians, points are (y, x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

SMALLEST, LARGEST = 0.7, 6.0  # radii; a thinner vessel is below the resolution of such a photograph
ARTERY, VEIN = 0, 1


@dataclass(frozen=True)
class Eye:
    """Positions (y, x) in an image: the field of view's centre, the optic disc's and the fovea."""

    shape: tuple[int, int]
    centre: tuple[float, float]
    radius: float
    disc: tuple[float, float]
    disc_radius: float
    fovea: tuple[float, float]

    @property
    def side(self) -> int:
        """1 if the fovea lies right of the disc, -1 if it lies left."""
        return 1 if self.fovea[1] > self.disc[1] else -1


@dataclass
class Segment:
    """A vessel between two branchings: its centreline (N, 2), one radius, and the segment it came from (-1: none)."""

    points: np.ndarray
    radius: float
    kind: int
    parent: int
    daughters: list[int] = field(default_factory=list)
    ends: bool = False  # it ends inside the field of view, and so is drawn thinner towards its end


def murray(r0: float, ratio: float) -> tuple[float, float]:
    """Returns the radii (r1, r2) of the daughters of a vessel of radius r0, with r2 = ratio * r0."""
    r2 = ratio * r0
    return (r0**3 - r2**3) ** (1 / 3), r2


def angles(r0: float, r1: float, r2: float) -> tuple[float, float]:
    """Returns the angles between a vessel and its daughters that cost the least work, both positive."""
    first = (r0**4 + r1**4 - r2**4) / (2 * r0**2 * r1**2)
    second = (r0**4 + r2**4 - r1**4) / (2 * r0**2 * r2**2)
    return math.acos(min(1.0, first)), math.acos(max(-1.0, min(1.0, second)))
