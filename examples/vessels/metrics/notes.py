"""Sentences on the figures of a result that are undefined, and on annotations and intervals that are missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

PLACES = {"field": "in the field of view", "all": "over all pixels"}
GROUPS = {
    "areas": "areas under the curves",
    "half": "threshold 0.5",
    "validation": "threshold of validation",
    "background": "all background",
    "second": "second annotator",
}


def notes(images: list[str], regions: dict[str, dict]) -> list[str]:
    """Returns the sentences for the regions of a result of `evaluate`; `images` are its names."""
    sentences = [] if len(images) > 1 else ["one image has no interval: it is drawn from several images"]
    for region, place in PLACES.items():
        for name, title in GROUPS.items():
            group = regions[region][name]
            if group is not None:
                sentences += _undefined(images, group, f"{place}, {title}")
                parts = {part: group[part] for part in ("thin", "thick") if part in group}
                for part, figures in parts.items():
                    sentences += _undefined(images, figures, f"{place}, {title}, {part} vessels")
    return sentences + list(_second(images, regions["field"]["second"]))


def _undefined(images: list[str], group: dict, where: str) -> Iterator[str]:
    """One sentence for the figures of all images together, and one for each set of images that lacks some."""
    if pooled := [name for name, figure in group["pooled"].items() if figure["value"] is None]:
        yield f"{where}: undefined (0/0) for all images together: {', '.join(pooled)}"
    lacking = defaultdict(list)
    absent = {i for i, value in enumerate(group["per_image"].get("accuracy", [])) if value is None}  # not annotated
    for name, values in group["per_image"].items():
        if name not in pooled and (missing := [i for i, v in enumerate(values) if v is None and i not in absent]):
            lacking[tuple(missing)].append(name)
    for indices, names in lacking.items():
        listed = ", ".join(images[i] for i in indices)
        yield f"{where}: undefined (0/0) in {listed} and left out of the mean: {', '.join(names)}"


def _second(images: list[str], group: dict | None) -> Iterator[str]:
    values = [None] * len(images) if group is None else group["per_image"]["accuracy"]
    if lacking := [name for name, value in zip(images, values) if value is None]:
        listed = "any image" if len(lacking) == len(images) else ", ".join(lacking)
        yield f"no second annotator for {listed}; the second annotator's figures are those of the other images"
