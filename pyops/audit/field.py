"""Field: the positions of a map that one output position reads, and how often it reads each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .taps import Taps

LARGEST_FIELD = 8192  # pixels of a side; the counts take 512 MiB then
MOST = 1e300  # counts stay below it: infinity times zero is no number


class Field(NamedTuple):
    """counts: (H, W) fp64, the number of paths to each position of a box; origin: the map's position of counts[0, 0].

    The counts are exact up to 2**53, at most MOST, and above zero wherever there is a path.
    """

    counts: Tensor
    origin: tuple[int, int]

    @staticmethod
    def at(position: tuple[int, int]) -> Field:
        """One position, read once."""
        return Field(torch.ones(1, 1, dtype=torch.float64), position)

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.counts.shape
        return height, width

    def through(self, vertical: Taps, horizontal: Taps) -> Field | None:
        """The field in the input of an operator, for this field in its output; None if nothing is read."""
        (rows, top), (columns, left) = self._reads(0, vertical), self._reads(1, horizontal)
        if not (rows.numel() and columns.numel()):
            return None
        return Field((rows @ self.counts @ columns.T).clamp_(max=MOST), (top, left))

    def _reads(self, axis: int, taps: Taps) -> tuple[Tensor, int]:
        """How often each input position (row) is read for each output position (column), and the first of the rows."""
        which, positions = taps(self.origin[axis] + torch.arange(self.size[axis]))
        first, end = (int(positions.min()), int(positions.max()) + 1) if len(positions) else (0, 0)
        check_side(end - first)
        counts = torch.zeros(end - first, self.size[axis], dtype=torch.float64)
        return counts.index_put_((positions - first, which), counts.new_ones(()), accumulate=True), first

    def plus(self, other: Field) -> Field:
        """Both fields of one map together."""
        low = tuple(map(min, self.origin, other.origin))
        ends = [max(f.origin[axis] + f.size[axis] for f in (self, other)) for axis in (0, 1)]
        counts = self.counts.new_zeros(ends[0] - low[0], ends[1] - low[1])
        for field in (self, other):
            top, left = field.origin[0] - low[0], field.origin[1] - low[1]
            counts[top : top + field.size[0], left : left + field.size[1]] += field.counts
        return Field(counts, (low[0], low[1]))

    def trimmed(self) -> Field:
        """Without empty rows and columns at the border of the box."""
        used = [(self.counts != 0).any(1 - axis).nonzero() for axis in (0, 1)]
        (top, bottom), (left, right) = ((int(places[0]), int(places[-1]) + 1) for places in used)
        return Field(self.counts[top:bottom, left:right], (self.origin[0] + top, self.origin[1] + left))

    def largest_hole(self) -> int:
        """The side of the largest square of positions that are not read."""
        read = torch.nn.functional.pad((self.counts != 0).long(), (1, 0, 1, 0)).cumsum(0).cumsum(1)

        def fits(side: int) -> bool:
            windows = read[side:, side:] - read[:-side, side:] - read[side:, :-side] + read[:-side, :-side]
            return bool((windows == 0).any())

        side, above = 0, min(self.size) + 1  # the largest side that fits lies in [side, above)
        while above - side > 1:
            middle = (side + above) // 2
            side, above = (middle, above) if fits(middle) else (side, middle)
        return side


def check_side(pixels: int) -> None:
    """Raises ValueError for the side of a field that is too large."""
    if pixels > LARGEST_FIELD:
        raise ValueError(f"model_or_rates: expected a field of at most {LARGEST_FIELD} pixels, got {pixels}")
