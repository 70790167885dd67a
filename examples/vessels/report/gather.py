"""All figures of the runs of a report: their checkpoints evaluated on the test images, beside Frangi's filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import atrous

from .. import checkpoint, metrics
from ..checkpoint import Checkpoint
from ..config import Config, RunError
from ..dataset import Images, load_split
from ..distributed import resolve
from ..inference import Way, predictions
from . import cost
from .layers import Layer, layers

DATA = ("data", "image_seed", "images", "validation", "partial")  # options that choose a run's images


@dataclass(frozen=True, eq=False)
class RunResult:
    """A run as the report shows it. figures: of `metrics.evaluate`; saved: bytes of a step, "fused" and "plain"."""

    name: str
    saved_run: Checkpoint
    test: Images
    predicted: list[metrics.Prediction]
    figures: dict
    layers: list[Layer]
    saved: dict[str, int]

    @property
    def config(self) -> Config:
        return self.saved_run.config

    @property
    def history(self) -> dict:
        return self.saved_run.history

    @property
    def synthetic(self) -> bool:
        return any(sample.synthetic for sample in self.test.samples)


@dataclass
class Gather:
    """Evaluates runs; images and Frangi's figures of the same data are computed once."""

    way: Way
    device: str = "auto"
    resamples: int = 1000
    images: dict[tuple, Images] = field(default_factory=dict)
    baselines: dict[tuple, dict] = field(default_factory=dict)

    def runs(self, paths: Sequence[str]) -> list[RunResult]:
        checkpoints = [checkpoint.load(path) for path in paths]
        return [self.run(name, saved) for name, saved in zip(_names(paths), checkpoints)]

    def run(self, name: str, saved: Checkpoint) -> RunResult:
        print(f"{name}: evaluating", flush=True)
        test, validation = self._split(saved, "test"), self._split(saved, "validation")
        if bare := [sample.name for sample in test.samples if sample.truth is None]:
            raise RunError(f"{name}: the test images {', '.join(bare)} have no annotations, and a report compares them")
        plain = saved.network().to(resolve(self.device))
        depth = layers(plain, validation.prepared)
        model = plain if saved.config.plain else atrous.fuse(plain)
        predicted = predictions(model, test, self.way)
        try:
            figures = metrics.evaluate(predicted, predictions(model, validation, self.way), resamples=self.resamples)
        except ValueError as error:
            raise RunError(f"{name}: {error}") from error
        memory = {kind: cost.saved_bytes(saved.config, kind == "plain") for kind in ("fused", "plain")}
        return RunResult(name, saved, test, predicted, figures, depth, memory)

    def baseline(self, run: RunResult) -> dict:
        """Returns the figures of Frangi's filter on the run's test images."""
        key = _key(run.saved_run)
        if key not in self.baselines:
            print("Frangi's filter: evaluating", flush=True)
            scored = [
                metrics.Prediction(s.name, metrics.frangi(s.image, s.field), s.truth, s.field) for s in run.test.samples
            ]
            self.baselines[key] = metrics.evaluate(scored, resamples=self.resamples)
        return self.baselines[key]

    def _split(self, saved: Checkpoint, split: str) -> Images:
        key = (*_key(saved), split)
        if key not in self.images:
            self.images[key] = load_split(saved.config, saved.preparation, split)
        return self.images[key]


def _key(saved: Checkpoint) -> tuple[Any, ...]:
    return (*(getattr(saved.config, name) for name in DATA), saved.preparation)


def _names(paths: Sequence[str]) -> list[str]:
    """The folders' names, or their whole paths where two are the same."""
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in paths]
    names = [folder.resolve().name for folder in folders]
    names = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise RunError(f"RUN: expected different runs, got {', '.join(repeated)} more than once")
    return names
