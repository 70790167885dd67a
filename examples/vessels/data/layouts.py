"""Folder layouts of the published data sets, and of folders by patterns: which file is which image's annotation.

A pattern is a path under the data folder with {name} for an image's name and, if there are folders for both, {split};
the ending .* stands for any image format, also with .gz. Upper and lower case are the same.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .read import SUFFIXES

WORDS = {"train": ("train", "training"), "test": ("test", "testing")}
ROLES = ("truth", "second", "field")
DEPTH = 3  # folders below the data folder that are searched


@dataclass(frozen=True)
class Layout:
    """Patterns of the images and, for the same {name}, of the annotation, a second one and the field of view.

    names: the images of each split of a published set; without them, all that match, of which every fourth by name is
    for the test if the patterns have no {split}.
    """

    images: str
    truth: str
    second: str | None = None
    field: str | None = None
    title: str = "images"
    names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def _numbers(first: int, last: int, *ends: str) -> tuple[str, ...]:
    return tuple(f"{number:02d}{end}" for number in range(first, last + 1) for end in ends or ("",))


STARE_NAMES = tuple(
    f"im{n:04d}" for n in (1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324)
)
# STARE has no published split. Every second image by name, so that both parts have healthy and diseased eyes.
STARE_SPLIT = {"train": STARE_NAMES[::2], "test": STARE_NAMES[1::2]}
HRF_ENDS = ("_dr", "_g", "_h")  # diabetic retinopathy, glaucoma, healthy

PUBLISHED = (
    # Staal et al., 2004. Its split, 20 and 20.
    Layout(
        "{split}/images/{name}_{split}.*", "{split}/1st_manual/{name}_manual1.*", "{split}/2nd_manual/{name}_manual2.*",
        "{split}/mask/{name}_{split}_mask.*", "DRIVE", {"train": _numbers(21, 40), "test": _numbers(1, 20)},
    ),
    # Fraz et al., 2012. The usual split: the first 20 images, both eyes of 10 children, and the last 8.
    Layout(
        "Image_{name}.*", "Image_{name}_1stHO.*", "Image_{name}_2ndHO.*", None, "CHASE_DB1",
        {"train": _numbers(1, 10, "L", "R"), "test": _numbers(11, 14, "L", "R")},
    ),
    # Budai et al., 2013. The usual split: the first five of each group, 15, and the other 30.
    Layout(
        "images/{name}.*", "manual1/{name}.*", None, "mask/{name}_mask.*", "HRF",
        {"train": _numbers(1, 5, *HRF_ENDS), "test": _numbers(6, 15, *HRF_ENDS)},
    ),
    # Hoover et al., 2000: the 20 annotated images, by A. Hoover (the first annotator in papers) and V. Kouznetsova.
    Layout(
        "stare-images/{name}.*", "labels-ah/{name}.ah.*", "labels-vk/{name}.vk.*", None, "STARE", STARE_SPLIT
    ),
    Layout("{name}.*", "{name}.ah.*", "{name}.vk.*", None, "STARE", STARE_SPLIT),
)  # fmt: skip
FOLDERS = (
    Layout("{split}/images/{name}.*", "{split}/masks/{name}.*", "{split}/second/{name}.*", "{split}/fields/{name}.*"),
    Layout("images/{name}.*", "masks/{name}.*", "second/{name}.*", "fields/{name}.*"),
)


def files(root: Path) -> list[str]:
    """Returns the paths of the files under a folder, relative to it and sorted, at most DEPTH folders deep."""
    result = []
    for folder, below, names in os.walk(root):
        here = Path(folder).relative_to(root)
        if len(here.parts) >= DEPTH:
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]
        result += [(here / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(result)


def matches(pattern: str, paths: Sequence[str], split: str) -> dict[str, list[str]]:
    """Returns the paths that match a pattern, by the name in it."""
    text = re.escape(pattern).replace(r"\{name\}", "(?P<name>[^/]+)", 1).replace(r"\{name\}", "(?P=name)")
    text = text.replace(r"\{split\}", "(?P<split>" + "|".join(WORDS[split]) + ")", 1)
    text = text.replace(r"\{split\}", "(?P=split)")
    text = re.sub(r"\\\.\\\*$", lambda _: rf"\.(?:{'|'.join(SUFFIXES)})(?:\.gz)?", text).replace(r"\*", "[^/]*")
    regex, named = re.compile(text, re.IGNORECASE), {}
    for path in paths:
        if match := regex.fullmatch(path):
            named.setdefault(match["name"], []).append(path)
    return named


def images(layout: Layout, paths: Sequence[str], split: str) -> dict[str, list[str]]:
    """Returns the images of a split by name, in order; a file that matches another role's pattern is no image."""
    patterns = [pattern for role in ROLES if (pattern := getattr(layout, role))]
    others = {path for pattern in patterns for same in matches(pattern, paths, split).values() for path in same}
    all_images = matches(layout.images, [path for path in paths if path not in others], split)
    if layout.names:
        known = {name.lower(): name for name in layout.names[split]}
        return {known[name.lower()]: all_images[name] for name in sorted(all_images) if name.lower() in known}
    names = sorted(all_images)
    if "{split}" not in layout.images:
        names = [name for i, name in enumerate(names) if (i % 4 == 3) == (split == "test")]
    return {name: all_images[name] for name in names}


def recognise(paths: Sequence[str]) -> Layout | None:
    """Returns the layout that most of the files fit, a published one before a plain one, or None."""
    counts = {i: sum(len(images(layout, paths, split)) for split in WORDS) for i, layout in enumerate(PUBLISHED)}
    best = max(counts, key=counts.__getitem__)
    if counts[best]:
        return PUBLISHED[best]
    return next((layout for layout in FOLDERS if any(images(layout, paths, split) for split in WORDS)), None)
