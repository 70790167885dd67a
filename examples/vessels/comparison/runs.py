"""Run the arms: each arm and seed in a folder of its own, whose result file says that it is finished."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import atrous

from .. import checkpoint, metrics, network
from ..config import Config, Diverged, RunError
from ..data import describe
from ..dataset import Images, RunData, load_run, load_split
from ..distributed import resolve
from ..inference import Way, predictions
from ..progress import clock
from ..training import train
from .arms import Arm

RESULT = "result.json"


@dataclass
class Runs:
    """The runs of a comparison. base: the reference's options; every run has its images."""

    base: Config
    arms: Sequence[Arm]
    seeds: Sequence[int]
    stride: int

    @cached_property
    def data(self) -> RunData:
        return load_run(self.base)

    @cached_property
    def test(self) -> Images:
        return load_split(self.base, self.data.preparation, "test")

    def config(self, arm: Arm, seed: int) -> Config:
        folder = self.base.folder / "runs" / f"{arm.folder}-seed{seed}"
        return dataclasses.replace(self.base, **arm.changes, seed=seed, output=str(folder))

    def refused(self) -> dict[str, str]:
        """Returns the arms that the audit of their rates refuses, with its sentence."""
        reasons = {}
        for arm in self.arms:
            try:
                network.check_rates(self.config(arm, 0))
            except RunError as error:
                reasons[arm.name] = str(error)
        return reasons

    def all(self, say: Callable[[str], None]) -> dict[str, list[dict]]:
        """Returns the results of every arm that is not refused, for each seed; runs what has no result yet."""
        refused = self.refused()
        arms = [arm for arm in self.arms if arm.name not in refused]
        todo = [(arm, seed) for arm in arms for seed in self.seeds if not self._path(arm, seed).exists()]
        results: dict[str, list[dict]] = {arm.name: [] for arm in arms}
        start, done = time.monotonic(), 0
        for arm in arms:
            for seed in self.seeds:
                fresh = (arm, seed) in todo
                if fresh:
                    say(f"{arm.name}, seed {seed}: training")
                results[arm.name].append(self.run(arm, seed))
                if fresh:
                    done += 1
                    left = _left(start, done, len(todo))
                    say(f"{arm.name}, seed {seed}: {_text(results[arm.name][-1])}; {left} left")
        return results

    def run(self, arm: Arm, seed: int) -> dict:
        """Returns a run's result, from its file if it has one; otherwise trains, from its checkpoint if it has one."""
        config, path = self.config(arm, seed), self._path(arm, seed)
        if path.exists():
            return self._read(path, config)
        about = {"format": checkpoint.FORMAT, "options": config.as_dict(), "stride": self.stride}
        start = time.monotonic()
        try:
            model = train(config, self.data, shown=False)
        except Diverged as error:
            result = {"stopped": str(error)}
        else:
            result = self._evaluate(model, config)
        result = {**about, **result, "seconds": time.monotonic() - start}
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(path, result)
        return result

    def _evaluate(self, model, config: Config) -> dict:
        """The figures of each test image: field of view, threshold 0.5."""
        model = model.to(resolve(config.device)).eval()
        model = model if config.plain else atrous.fuse(model)
        figures = metrics.evaluate(predictions(model, self.test, Way(config.patch, self.stride)), resamples=1)
        region = figures["regions"]["field"]
        half = region["half"]
        return {
            "images": figures["images"],
            "f1": half["per_image"]["f1"],
            "roc_auc": region["areas"]["per_image"]["roc_auc"],
            **{part: half[part]["per_image"]["sensitivity"] for part in ("thin", "thick")},
            "synthetic": any(sample.synthetic for sample in self.test.samples),
            "description": describe(self.test.samples).splitlines(),
        }

    def first_image(self, arm: Arm) -> metrics.Prediction:
        """Returns the first test image as the run of the first seed sees it."""
        config = self.config(arm, self.seeds[0])
        model = checkpoint.load(config.folder).network().to(resolve(config.device))
        first = Images(self.test.samples[:1], self.test.prepared[:1])
        return predictions(model, first, Way(config.patch, self.stride))[0]

    def _path(self, arm: Arm, seed: int) -> Path:
        return self.config(arm, seed).folder / RESULT

    def _read(self, path: Path, config: Config) -> dict:
        """Raises RunError if the result is of other options."""
        try:
            result = json.loads(path.read_text())
            if result["format"] != checkpoint.FORMAT:
                raise ValueError(result["format"])
            differences = Config.from_dict(result["options"]).differences(config)
            if result["stride"] != self.stride:
                differences.append(f"stride {result['stride']} instead of {self.stride}")
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: expected a result of compare, got another file; remove it to run again") from error
        if differences:
            raise RunError(f"{path} is the result of another run: {', '.join(differences)}; give another --output")
        return result


def _text(result: dict) -> str:
    if "stopped" in result:
        return result["stopped"]
    areas = [value for value in result["roc_auc"] if value is not None]
    mean = f"{sum(areas) / len(areas):.4f}" if areas else "undefined"
    return f"ROC area {mean} (mean over images), {result['seconds']:.0f} s"


def _left(start: float, done: int, count: int) -> str:
    """The time left behind `done` of `count` runs at the mean pace since `start`."""
    return clock((time.monotonic() - start) / done * (count - done))
