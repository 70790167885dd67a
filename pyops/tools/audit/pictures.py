"""Draw an audit: the field beside the suggestion's, and on an image."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...audit import Audit
from ...core.checks import UsageError
from ..image_file import png, read_rgb
from . import report

LONGEST_SIDE = 1024  # pixels of an image for a list of rates without --size
HOLE = "#d55e00"  # vermilion, apart from every colour of cividis for colour-blind eyes too
DPI = 110


def read(path: Path) -> Any:
    """The image in RGB. Raises UsageError."""
    if importlib.util.find_spec("PIL") is None:
        raise UsageError("--image needs Pillow: pip install pillow")
    return read_rgb(path)


def fitted(image: Any, audit: Audit) -> Any:
    """The image's middle part at the audited size, or all of it, up to LONGEST_SIDE."""
    from PIL import ImageOps

    if audit.input_size:
        return ImageOps.fit(image, audit.input_size[::-1])
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def draw(title: str, audit: Audit, suggested: Sequence[Audit], image: Any) -> bytes:
    """A PNG: the field's heat map, those of the suggestion, and the field on the image."""
    from matplotlib.figure import Figure

    panels = 1 + len(suggested) + 2 * (image is not None)
    figure = Figure(figsize=(4.6 * panels + 0.4, 5.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _heat_map(figure, axes[0], title, audit)
    for axis, other in zip(axes[1:], suggested):
        _heat_map(figure, axis, f"suggested: rates {report.rates(other)}", other)
    if image is not None:
        _on_image(axes[-2:], audit, image)
    return png(figure)


def _heat_map(figure: Any, axis: Any, title: str, audit: Audit) -> None:
    """How often each position is read, from 1, on a logarithmic scale; positions that are not read are holes."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import LogFormatter

    counts = audit.profile.masked_fill(audit.profile == 0, torch.nan).numpy()
    height, width = audit.receptive_field
    axis.set_facecolor(HOLE)
    least, most = report.lowest(audit), float(audit.profile.max())
    norm = LogNorm(vmin=least, vmax=max(most, 1.001 * least))
    drawn = axis.imshow(counts, cmap="cividis", norm=norm, extent=_extent(audit), interpolation="nearest")
    axis.set_title(f"{title}\n{summary(audit)}", fontsize=10)
    axis.set_xlabel(_label(audit))
    if audit.input_size and (height > audit.input_size[0] or width > audit.input_size[1]):
        top, left = (-(size // 2) - 0.5 for size in audit.input_size)
        axis.add_patch(
            Rectangle((left, top), audit.input_size[1], audit.input_size[0], fill=False, color="white", lw=1.5)
        )
        axis.annotate("image", (left, top), color="white", va="bottom", fontsize=9)
    bar = figure.colorbar(drawn, ax=axis, location="bottom", shrink=0.85)
    if most == least:
        bar.set_ticks([least], labels=[report.number(least)])
    elif most < 1000:
        for which in (bar.ax.xaxis.set_major_formatter, bar.ax.xaxis.set_minor_formatter):
            which(LogFormatter(minor_thresholds=(1, 0.4)))
    bar.set_label("times that a position is read" + ("; orange: holes, not read" if audit.holes else ""), fontsize=9)


def _label(audit: Audit) -> str:
    return f"pixels from the {'output position' if audit.gmac is None else 'middle of the image'}"


def summary(audit: Audit) -> str:
    """The numbers that stand above a heat map."""
    height, width = audit.receptive_field
    holes = report.holes(audit).removesuffix(" pixels")
    return f"{height}x{width} pixels, {report.percent(audit.coverage)} read\n{holes}"


def _extent(audit: Audit) -> tuple[float, float, float, float]:
    """Left, right, bottom and top border of the box, in pixels from the output position."""
    (height, width), (y, x) = audit.receptive_field, audit.center
    return -x - 0.5, width - x - 0.5, height - y - 0.5, -y - 0.5


def _on_image(axes: Sequence[Any], audit: Audit, image: Any) -> None:
    """The image with the box of the field around its middle, and the part of it there with what is read."""
    from matplotlib.patches import Rectangle

    (width, height), (left, right, bottom, top) = image.size, _extent(audit)
    middle = width // 2, height // 2
    extent = (-middle[0] - 0.5, width - middle[0] - 0.5, height - middle[1] - 0.5, -middle[1] - 0.5)
    whole, near = axes
    for axis in axes:
        axis.imshow(image, extent=extent)
        axis.set_xlabel(_label(audit))
    whole.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=HOLE, lw=2))
    larger = right - left >= width and bottom - top >= height
    name = "the image, smaller than the field" if larger else "the field in the image"
    whole.set_title(f"{name}\n{width}x{height} pixels", fontsize=10)
    near.imshow(_shade(audit.profile), extent=_extent(audit), interpolation="nearest")
    near.set_xlim(max(left - 2, extent[0]), min(right + 2, extent[1]))
    near.set_ylim(min(bottom + 2, extent[2]), max(top - 2, extent[3]))
    near.set_title(
        f"read by one output position: {report.percent(audit.coverage)}\norange: holes; darker: read less often",
        fontsize=10,
    )


def _shade(counts: Tensor) -> Any:
    """RGBA over the image: black, the more opaque the less often a position is read; a hole has its colour."""
    from matplotlib.colors import to_rgba

    rgba = torch.zeros(*counts.shape, 4)
    rgba[..., 3] = 0.6 * (1 - counts.log1p() / counts.log1p().max())
    rgba[counts == 0] = torch.tensor(to_rgba(HOLE))
    return rgba.numpy()
