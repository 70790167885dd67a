"""A run's checkpoint: written so that a kill leaves the old one or the new one, and read without running its code."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atrous.core import files

from .config import Config, RunError
from .data import Preparation
from .network import VesselNet, build

FORMAT = "atrous vessels 2"
NAME = "checkpoint.pt"


@dataclass
class Checkpoint:
    """The state of a run behind an epoch.

    config: the options that it was trained with. preparation: mean and deviation of its training images.
    epochs: the finished ones. history: as in history.json.
    model, optimizer, scaler: state_dicts, for the next epoch.
    best: the model's state_dict behind the epoch with the largest validation ROC area, the first of several.
    Random numbers have no state here: each epoch seeds them from the run's seed, its number and the rank.
    """

    config: Config
    preparation: Preparation
    epochs: int = 0
    history: dict[str, list] = field(default_factory=lambda: {"epochs": [], "losses": []})
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)

    @property
    def best_epoch(self) -> int:
        """From 1. Without any area, as without vessels, it is the last one."""
        areas = [line["validation_roc_auc"] for line in self.history["epochs"]]
        defined = [area for area in areas if area is not None]
        return areas.index(max(defined)) + 1 if defined else len(areas)

    def network(self) -> VesselNet:
        """Returns the network of the best epoch, plain and in eval mode, on the CPU."""
        model = build(self.config)
        load_into(model, self.best, "the checkpoint")
        return model.eval()


def save(checkpoint: Checkpoint, path: Path) -> None:
    preparation = {"mean": checkpoint.preparation.mean, "deviation": checkpoint.preparation.deviation}
    values = {
        **vars(checkpoint), "format": FORMAT, "config": checkpoint.config.as_dict(), "preparation": preparation
    }  # fmt: skip
    buffer = io.BytesIO()  # torch reports a full disk in words of its own
    torch.save(values, buffer)
    files.write(path, buffer.getvalue())


def file_of(path: str | Path) -> Path:
    """Returns the checkpoint in a run's folder, or the path as it is."""
    path = Path(path)
    return path / NAME if path.is_dir() else path


def load(path: str | Path) -> Checkpoint:
    """Raises RunError for a file that is missing, unreadable or another program's."""
    path = file_of(path)
    if not path.is_file():
        raise RunError(f"{path}: expected a checkpoint, got no such file")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for other files the unpickler raises almost anything
        raise RunError(f"{path}: expected a checkpoint of this program, got a file that is not one") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise RunError(f"{path}: expected a checkpoint of this program ({FORMAT}), got one of another")
    try:
        config, preparation = Config.from_dict(values.pop("config")), Preparation(**values.pop("preparation"))
        return Checkpoint(config, preparation, **values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: expected a whole checkpoint of this program, got one that lacks a part") from error


def load_into(model: nn.Module, weights: dict[str, Any], source: str) -> None:
    """Copies weights into a model. Raises RunError that names what differs; nothing is copied then."""
    own = model.state_dict()
    problems = [f"it lacks {name}" for name in own if name not in weights]
    problems += [f"it has unknown {name}" for name in weights if name not in own]
    problems += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items() if name in weights and weights[name].shape != value.shape
    ]  # fmt: skip
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise RunError(f"{source} is of another model: {', '.join(problems[:3])}{more}")
    model.load_state_dict(weights)


def check_same_run(saved: Config, config: Config) -> None:
    """Raises RunError that names each option in which a checkpoint differs from the run that would go on with it."""
    if differences := saved.differences(config):
        raise RunError(
            f"{config.folder / NAME} is a checkpoint of another run: {', '.join(differences)}; give these options, or "
            "another --output"
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Raises RunError if another process trains in the folder. The lock ends with its process, however that ends."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder}: another process trains there; wait for it or give another --output") from error
        except OSError as error:  # a file system without locks
            raise RunError(f"{folder}: cannot be locked ({error.strerror}); give an --output elsewhere") from error
        for left in folder.glob("*.part"):  # of a process that was killed while it wrote
            left.unlink()
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with each item of the lists in `value` in a line of its own."""
    files.write(path, _lines(value) + "\n")


def _lines(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    parts = []
    for key, item in value.items():
        items = item if isinstance(item, list) and item and isinstance(item[0], dict) else None
        text = "[\n" + ",\n".join(map(json.dumps, items)) + "\n]" if items else json.dumps(item)
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"
