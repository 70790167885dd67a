"""The images of a run: loaded, split into training and validation, prepared, and cut into batches of random patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import Config, RunError
from .data import DataError, PatchSampler, Preparation, Sample, cut, describe, hold_out, load

AT_ONCE = 100  # steps whose patches are drawn together


@dataclass(frozen=True, eq=False)
class Images:
    """Samples beside their prepared images, (H, W) float32 in [0, 1]."""

    samples: Sequence[Sample]
    prepared: Sequence[np.ndarray]

    def sampler(self, size: int) -> PatchSampler:
        """Returns a source of random patches; it searches every field of view, so that a run keeps one."""
        truths, fields = ([getattr(sample, part) for sample in self.samples] for part in ("truth", "field"))
        return PatchSampler(self.prepared, truths, fields, size)


@dataclass(frozen=True, eq=False)
class RunData:
    """The training and validation images of a run, prepared with the statistics of the former."""

    train: Images
    validation: Images
    preparation: Preparation
    text: str


def load_run(config: Config) -> RunData:
    """Returns the images that a configuration asks for. Raises DataError for a folder that does not fit."""
    samples = load(_path(config.data), "train", config.image_seed, config.images, partial=config.partial)
    _check(samples, config)
    train, validation = hold_out(samples, config.validation)
    preparation = Preparation.fit(train)
    _check_patches(samples, config)
    text = f"{describe(samples)}\n{len(train)} images for training, {len(validation)} for validation"
    return RunData(prepare(train, preparation), prepare(validation, preparation), preparation, text)


def load_split(config: Config, preparation: Preparation, split: str) -> Images:
    """Returns prepared images to evaluate: "test", or "validation", those that training held out."""
    path = _path(config.data)
    if split == "test":
        return prepare(load(path, "test", config.image_seed, partial=config.partial), preparation)
    samples = load(path, "train", config.image_seed, config.images, partial=config.partial)
    _check(samples, config)
    return prepare(hold_out(samples, config.validation)[1], preparation)


def prepare(samples: Sequence[Sample], preparation: Preparation) -> Images:
    return Images(samples, [preparation(sample.image) for sample in samples])


def batches(sampler: PatchSampler, config: Config, epoch: int, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields an epoch's batches of a process: patches and truths, (batch, 1, patch, patch) of config.dtype.

    They depend on the seed, the epoch and the rank alone, so that a resumed run has the same, and no two processes do.
    """
    dtype = getattr(torch, config.dtype)
    for start in range(0, config.steps, AT_ONCE):
        steps = min(AT_ONCE, config.steps - start)
        rng = np.random.default_rng((config.seed, epoch, start, rank))
        x, y = sampler(steps * config.batch, rng, config.turn)
        parts = (torch.from_numpy(values).to(dtype).split(config.batch) for values in (x, y))
        yield from zip(*parts)


def _path(data: str | None) -> Path | None:
    return None if data is None else Path(data)


def _check(samples: Sequence[Sample], config: Config) -> None:
    if len(samples) <= config.validation:
        raise RunError(
            f"--validation {config.validation}: the data has {len(samples)} images, and none is left to train on"
        )
    if bare := [sample.name for sample in samples if sample.truth is None]:
        raise DataError(f"{config.data}: no annotation to train on for {', '.join(bare)}")


def _check_patches(samples: Sequence[Sample], config: Config) -> None:
    for sample in samples:
        try:
            cut.corners(sample.field, config.patch)
        except ValueError as error:
            raise RunError(f"--patch {config.patch}: {str(error).replace('image 0', sample.name)}") from error
