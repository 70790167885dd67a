"""What is told of an explained model: the choices for its convolutions, their sums, the text and the JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from .conv_sites import Site
from .layer_table import gmac
from .layers import Walk
from .target import Target


@dataclass(frozen=True)
class Choice:
    """Who runs a convolution; config: of the row triton; tuned: the two are the tuning table's, not the rule's.

    Times are None where unknown: a table's is one of this batch, this row and this config.
    """

    site: Site
    backend: str
    config: str | None
    tuned: bool
    bytes: int
    floor_us: float | None
    measured_us: float | None

    def as_dict(self) -> dict:
        """The choice for JSON, flat."""
        found = asdict(self)
        site = found.pop("site")
        return {**site, **site.pop("spec"), "output": self.site.output, "macs": self.site.macs, **found}


@dataclass
class Explanation:
    """A walk, and the choices for its convolutions as fuse() runs them."""

    walk: Walk
    target: Target
    choices: list[Choice]

    @property
    def totals(self) -> dict:
        """Of all convolutions; what is not known of each of them is None. images_per_second: what the floor allows."""
        floor, measured = total(c.floor_us for c in self.choices), total(c.measured_us for c in self.choices)
        images = self.walk.input[0] / floor * 1e6 if floor else None
        moved = sum(choice.bytes for choice in self.choices)
        return {"bytes": moved, "floor_us": floor, "measured_us": measured, "images_per_second": images}

    def render(self, width: int = 80) -> str:
        """The table, the sums and what they mean, for a terminal of this width."""
        return f"{self.target.title()}\n\n{self.walk.render(width, self._sums())}"

    def _sums(self) -> Iterator[str]:
        if not self.choices:
            return
        rows = Counter(choice.backend for choice in self.choices)
        for row, number in sorted(rows.items()):
            yield f"{row} convolves {number} of {rows.total()}"
        totals, macs = self.totals, sum(choice.site.macs for choice in self.choices)
        line = f"convolutions: {gmac(macs)} GMAC, {totals['bytes'] / 1e6:,.2f} MB"
        if totals["floor_us"]:
            line += f", floor {totals['floor_us']:,.2f} us: at most {totals['images_per_second']:,.0f} img/s"
        if totals["measured_us"]:
            line += f", measured {totals['measured_us']:,.2f} us"
        yield line
        configs = [choice.tuned for choice in self.choices if choice.config]
        if not all(configs):
            yield f"{configs.count(False)} configs are the rule's, not measured (see atrous tune)"
        if configs:
            yield "config: channels x pixels x depth, warps (w), stages (s)"
        if any(choice.measured_us and choice.floor_us for choice in self.choices):
            yield "share: the floor's, of the measured time"
        yield "MB: input, weight, output and residual, each once"
        yield self.target.note()

    def as_dict(self) -> dict:
        """The explanation for JSON."""
        kept = self.walk.as_dict()
        kept["totals"] |= self.totals
        return {**kept, "target": self.target.as_dict(), "convolutions": [choice.as_dict() for choice in self.choices]}


def total(values: Iterable[float | None]) -> float | None:
    """The sum, or None where one of them is."""
    known = list(values)
    return None if None in known else sum(known)  # type: ignore[arg-type]
