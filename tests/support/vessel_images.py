"""Drawn vessel images in a folder, small enough to train on in seconds, and the options of a tiny run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
# 20 steps in all of a network of 8 channels.
OPTIONS = {
    "--width": 8, "--batch": 4, "--steps": 5, "--epochs": 4, "--patch": 24, "--rates": "1,2", "--validation": 1,
    "--device": "cpu",
}  # fmt: skip


def draw(folder: Path, train: int = 3, test: int = 1, annotated: bool = True) -> Path:
    """Writes train/ and test/ with images of dark lines and their masks; returns the folder."""
    rng = np.random.default_rng(7)
    for split, number in (("train", train), ("test", test)):
        for index in range(number):
            image, mask = _picture(rng)
            for name, values in (("images", image), ("masks", mask)):
                if name == "images" or annotated or split == "train":
                    path = folder / split / name / f"{split}{index}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(values).save(path)
    return folder


def _picture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:SIDE, :SIDE]
    mask = np.zeros((SIDE, SIDE), bool)
    for _ in range(4):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-20, 20)
        distance = (x - SIDE / 2) * np.cos(angle) + (y - SIDE / 2) * np.sin(angle) - offset
        mask |= np.abs(distance) < rng.uniform(1, 2)
    grey = np.where(mask, 110, 160) + rng.normal(0, 8, mask.shape)
    image = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2)
    return image, (mask * 255).astype(np.uint8)


def arguments(command: str, data: Path, run: Path, *more: object, **changes: object) -> list[str]:
    """The command line of a tiny training run; `changes` replaces options, width=16 for --width."""
    options = {**OPTIONS, **{f"--{name}": value for name, value in changes.items()}}
    words = [command, "--data", data, "--output", run, *(part for pair in options.items() for part in pair), *more]
    return [str(word) for word in words]
