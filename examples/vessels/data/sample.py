"""One fundus image with its annotations, as every part of the experiment takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class DataError(ValueError):
    """Images that cannot be used; the message lists every problem, one file a line."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image and its masks, all of one height H and width W in pixels.

    image: (H, W, 3) uint8, RGB.
    truth: (H, W) bool, the first annotator's vessels, or None where the data has no annotation.
    second: (H, W) bool, a second annotator's vessels, or None.
    field: (H, W) bool, the pixels that the camera saw (field of view).
    field_estimated: the field comes from `field.estimate`, not from a file.
    synthetic: the image comes from the generator; say so beside every number and picture of it.
    source: the data set and its split, for people.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None
    second: np.ndarray | None
    field: np.ndarray
    field_estimated: bool = False
    synthetic: bool = False
    source: str = ""


def describe(samples: Sequence[Sample]) -> str:
    """Returns what was loaded in a few lines: source, sizes, vessel pixels, annotations and fields of view."""
    if not samples:
        return "no images"
    sizes = sorted({f"{s.image.shape[1]}x{s.image.shape[0]}" for s in samples})
    sources = ", ".join(dict.fromkeys(s.source or "images" for s in samples))
    lines = [f"{sources}: {_count(len(samples), 'image')} of {' and '.join(sizes)} pixels"]
    generated = sum(s.synthetic for s in samples)
    if generated:
        which = "SYNTHETIC" if generated == len(samples) else f"SYNTHETIC in part ({generated} of {len(samples)})"
        lines.append(f"{which}: generated images, not photographs; no number on them compares with a published one")
    lines += [_vessels(samples), _second(samples), _fields(samples)]
    return "\n".join(line for line in lines if line)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _vessels(samples: Sequence[Sample]) -> str:
    annotated = [s for s in samples if s.truth is not None]
    bare = len(samples) - len(annotated)
    lines = []
    if annotated:
        vessels = sum(np.count_nonzero(s.truth & s.field) for s in annotated)
        inside = sum(np.count_nonzero(s.field) for s in annotated)
        lines.append(f"vessels: {vessels / inside:.2%} of the pixels inside the field of view")
    if bare:
        lines.append(
            f"no annotation for {_count(bare, 'image')}: prediction is possible, evaluation is not"
            + ("" if annotated else "; the validation part of the training images has annotations")
        )
    return "\n".join(lines)


def _second(samples: Sequence[Sample]) -> str:
    both = sum(s.second is not None for s in samples)
    return f"second annotator: {_count(both, 'image')}" if both else ""


def _fields(samples: Sequence[Sample]) -> str:
    estimated = [s.name for s in samples if s.field_estimated]
    if not estimated:
        return "field of view: as given"
    which = "all images" if len(estimated) == len(samples) else ", ".join(estimated)
    return f"field of view: ESTIMATED from the luminance for {which}; published figures may use another one"
