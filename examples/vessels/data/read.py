"""Read images and masks from files, and collect what is wrong with them instead of stopping at the first."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .sample import DataError

SUFFIXES = ("bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff")  # each also with .gz behind it
# A mask's pixel that is nearer than TOLERANCE of its range to black or white counts as that: JPEG changes them so much.
# More than GREY of other pixels (an antialiased or resized mask, a probability map) is an error: at the borders of thin
# vessels the threshold would decide how wide they are, and that is not for a reader to decide.
TOLERANCE, GREY = 0.15, 0.01
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)


class Problems:
    """The problems of the files under a folder; `check` raises them all at once."""

    def __init__(self, root: Path):
        self.root = root
        self.lines: list[str] = []

    def add(self, path: Path | str, sentence: str) -> None:
        name = path.relative_to(self.root).as_posix() if isinstance(path, Path) else path
        self.lines.append(f"  {name}: {sentence}")

    def check(self, advice: str = "") -> None:
        if self.lines:
            count = f"{len(self.lines)} problem" + ("" if len(self.lines) == 1 else "s")
            raise DataError("\n".join([f"{self.root}: {count}", *self.lines, *([advice] if advice else [])]))


def read_image(path: Path, problems: Problems) -> np.ndarray | None:
    """Returns (H, W, 3) uint8, or None and adds a problem. A grey image becomes one of three equal channels."""
    opened = _open(path, problems)
    if opened is None:
        return None
    if opened.mode.startswith(("I", "F")):
        problems.add(path, f"has pixels of mode {opened.mode}; an image has 8 bits a channel")
        return None
    return np.asarray(opened.convert("RGB"))


def read_mask(path: Path, size: tuple[int, int], role: str, problems: Problems) -> np.ndarray | None:
    """Returns (H, W) bool, true where the mask is white, or None and adds a problem.

    size: (H, W) of the image that it belongs to. role: "annotation" or "field of view", for the messages.
    """
    opened = _open(path, problems)
    if opened is None:
        return None
    values = np.asarray(opened if opened.mode.startswith(("I", "F")) else opened.convert("L"), np.float64)
    if values.shape != size:
        here, there = (f"{s[1]}x{s[0]}" for s in (values.shape, size))
        problems.add(path, f"is {here} pixels, its image is {there}")
        return None
    values = values / max(float(values.max()), 1e-9)
    grey = ((values > TOLERANCE) & (values < 1 - TOLERANCE)).mean()
    if grey > GREY or values.min() < 0:
        problems.add(path, f"is not binary: {grey:.1%} of its pixels are between black and white; threshold it first")
        return None
    mask = values > 0.5
    if not mask.any():
        problems.add(path, f"is a mask ({role}) without a white pixel")
        return None
    if role == "annotation" and mask.all():
        problems.add(path, "is an annotation without a black pixel")
        return None
    return mask


def _open(path: Path, problems: Problems) -> Image.Image | None:
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
        opened = Image.open(io.BytesIO(data))
        opened.load()
        return opened.convert("L") if opened.mode == "1" else opened
    except UnidentifiedImageError:
        problems.add(path, "cannot be read: it is no image of a known format")
    except UNREADABLE as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
        problems.add(path, "cannot be read: " + reason.replace(f"{path}", "it"))
        return None
