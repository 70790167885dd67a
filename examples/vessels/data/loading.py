"""Load a split: from a published data set's folder, from any folder by patterns, or from the generator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import field, layouts, synthetic
from .layouts import ROLES, Layout, matches
from .read import Problems, read_image, read_mask
from .sample import DataError, Sample

TITLES = {"truth": "annotation", "second": "annotation", "field": "field of view"}
HELP = """DRIVE: training/images/21_training.tif, training/1st_manual/21_manual1.gif, training/mask/21_training_mask.gif
  CHASE_DB1: Image_01L.jpg, Image_01L_1stHO.png
  STARE: stare-images/im0001.ppm.gz, labels-ah/im0001.ah.ppm.gz, or all in one folder
  HRF: images/01_dr.jpg, manual1/01_dr.tif, mask/01_dr_mask.tif
  any other: images/NAME.png, masks/NAME.png, perhaps fields/NAME.png and second/NAME.png, all perhaps under train/ and
  test/; or name the patterns"""


def load(
    path: Path | None, split: str, seed: int = 0, count: int | None = None, patterns: Layout | None = None,
    partial: bool = False,
) -> list[Sample]:  # fmt: skip
    """Returns the images of a split with their masks, in the order of their names.

    path: the data folder; its layout is recognised (`layouts.PUBLISHED`, `layouts.FOLDERS`) unless `patterns` are
    given. None makes synthetic images, `count` of them (20), from `seed`.
    split: "train" or "test". `hold_out` takes the validation images from the training ones.
    count: at most so many images.
    partial: takes what is there of a published set; otherwise each missing image is an error, as figures on a part of
    a test set do not compare with published ones.

    An image without its annotation is an error, unless no image of the test split has one, as in today's download of
    DRIVE: their truth is None, for prediction alone. Fields of view that do not ship are estimated.

    Raises DataError with every problem of every file.
    """
    if split not in layouts.WORDS:
        raise ValueError(f"split is 'train' or 'test', not {split!r}")
    if path is None:
        return synthetic.generate(split, synthetic.COUNT if count is None else count, seed)
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    paths = layouts.files(root)
    layout = patterns or layouts.recognise(paths)
    if layout is None:
        raise DataError(_unknown(root, paths))
    problems = Problems(root)
    names = _names(layout, paths, split, partial, problems)
    names = dict(list(names.items())[:count])
    samples = _read(layout, root, names, _masks(layout, paths, split, names, problems), split, problems)
    problems.check(
        "" if partial or not layout.names else f"partial=True loads the part of {layout.title} that is there"
    )
    return samples


def hold_out(samples: Sequence[Sample], count: int = 4) -> tuple[list[Sample], list[Sample]]:
    """Returns training images and the last `count`, for validation: of DRIVE's 20, 16 and 4 as in the literature.

    By name, the last ones of CHASE_DB1 are both eyes of the last children, so that no child is in both parts, and the
    last ones of HRF are of every group.
    """
    if not 0 <= count < len(samples):
        raise ValueError(f"cannot hold out {count} of {len(samples)} images and train on the others")
    return list(samples[: len(samples) - count]), list(samples[len(samples) - count :])


def _unknown(root: Path, paths: Sequence[str]) -> str:
    if not any(path.lower().removesuffix(".gz").endswith(layouts.SUFFIXES) for path in paths):
        return f"{root}: has no image files; the layouts that are known:\n  {HELP}"
    below = sorted({path.split("/")[0] for path in paths if "/" in path})
    hints = []
    for name in below:
        inside = [path.removeprefix(f"{name}/") for path in paths if path.startswith(f"{name}/")]
        if layout := layouts.recognise(inside):
            hints.append(f"{root / name} looks like {layout.title}: pass that folder")
    return "\n  ".join([f"{root}: no known layout", *hints, HELP])


def _names(
    layout: Layout, paths: Sequence[str], split: str, partial: bool, problems: Problems
) -> dict[str, str]:  # fmt: skip
    """Returns the file of each image of a split; adds images that are missing and names with two files."""
    present = layouts.images(layout, paths, split)
    expected = [] if partial else layout.names.get(split, ())
    for name in expected:
        if name not in present:
            problems.add(_file(layout.images, name, split), "the image is missing")
    if not present and not problems.lines:
        problems.add(_file(layout.images, "{name}", split), f"no image for the {split} split")
    for name, same in present.items():
        if len(same) > 1:
            problems.add(same[0], f"{name} has {len(same)} images: {', '.join(same)}")
    return {name: same[0] for name, same in present.items()}


def _masks(
    layout: Layout, paths: Sequence[str], split: str, names: dict[str, str], problems: Problems
) -> dict[str, dict[str, str]]:  # fmt: skip
    """Returns the mask files of each role, by image; adds those that are missing where other images have theirs."""
    result = {}
    for role in ROLES:
        pattern = getattr(layout, role)
        there = {k.lower(): v for k, v in matches(pattern, paths, split).items()} if pattern else {}
        result[role] = {name: there[name.lower()][0] for name in names if name.lower() in there}
        needed = bool(result[role]) or (role == "truth" and split == "train")
        for name in names if needed else ():
            if name not in result[role]:
                problems.add(_file(pattern, name, split), f"the {TITLES[role]} of {names[name]} is missing")
            elif len(there[name.lower()]) > 1:
                problems.add(result[role][name], f"{name} has more than one: {', '.join(there[name.lower()])}")
    return result


def _file(pattern: str, name: str, split: str) -> str:
    return pattern.replace("{name}", name).replace("{split}", "training" if split == "train" else split)


def _read(
    layout: Layout, root: Path, names: dict[str, str], masks: dict[str, dict[str, str]], split: str, problems: Problems
) -> list[Sample]:  # fmt: skip
    samples = []
    for name, file in names.items():
        image = read_image(root / file, problems)
        if image is None:
            continue
        parts: dict[str, np.ndarray | None] = {
            role: read_mask(root / masks[role][name], image.shape[:2], TITLES[role], problems)
            for role in ROLES if name in masks[role]
        }  # fmt: skip
        estimated = name not in masks["field"]
        view = field.estimate(image) if estimated else parts["field"]
        title = f"{layout.title}_{name}" if layout.names else name
        source = f"{layout.title}, {split}"
        samples.append(Sample(title, image, parts.get("truth"), parts.get("second"), view, estimated, source=source))
    return samples
