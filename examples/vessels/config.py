"""The options of a training run, in one dataclass: the command line, config.json and the checkpoint are made of it."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from atrous.tools.model_argument import count

ACTIVATIONS = ("prelu", "leaky_relu", "rrelu", "relu")
DTYPES = ("float32", "float64")
AMP = ("none", "bf16", "fp16")
PLACES = ("output", "epochs", "device", "tensorboard")  # options that a resumed run may change


class RunError(Exception):
    """A run that cannot begin or go on, as one sentence for the user; the exit status is 2."""


class Diverged(RunError):
    """A loss or weights that are not finite: another run with the same options stops at the same step."""


def rates(text: str) -> tuple[int, ...]:
    """Returns the dilations of "1,2,5"; "none" is 1,1,1."""
    parts = ["1"] * 3 if text == "none" else text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected positive integers as in 1,2,5, or none, got {text!r}")
    return tuple(map(int, parts))


def number(text: str) -> float:
    """Returns a finite number; a fraction as in 1/5.5 is one."""
    try:
        above, _, below = text.partition("/")
        value = float(Fraction(above) / Fraction(below or "1"))
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"expected a number that is at least 0, as 0.01 or 1/5.5, got {text!r}")
    return value


def probability(text: str) -> float:
    if (value := number(text)) >= 1:
        raise argparse.ArgumentTypeError(f"expected a probability below 1, got {text!r}")
    return value


def whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer that is at least 0, got {text!r}")
    return int(text)


def option(default: Any, text: str, parse: Callable = str, choices: tuple | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "parse": parse, "choices": choices})


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on. `Config(act="relu")` has the defaults of the command line."""

    output: str = option("out/vessels", "the run's folder: checkpoint, history, configuration")
    data: str | None = option(None, "data folder (default: synthetic images)")
    image_seed: int = option(0, "seed of the synthetic images", whole)
    images: int | None = option(None, "at most so many training images, validation ones among them", count)
    validation: int = option(4, "training images that are held out for validation", count)
    partial: bool = option(False, "take what is there of a published data set")
    backbone: str = option("resnet18", "the network in front of the head", choices=("resnet18", "resnet34"))
    stages: int = option(2, "stages of the backbone: 1 has output stride 1, 2 has 2", int, (1, 2))
    width: int = option(16, "channels of the first stage", count)
    act: str = option("prelu", "activation", choices=ACTIVATIONS)
    slope: float = option(0.01, "slope of leaky_relu: 0.01, 1/5.5", number)
    rates: tuple[int, ...] = option((1, 2, 5), "dilations of the head; none is 1,1,1", rates)
    dropout: float = option(0.0, "probability of the dropout behind the head", probability)
    plain: bool = option(False, "train without fusing")
    lr: float = option(0.01, "learning rate at the first step", number)
    decay: float = option(2e-5, "time-based decay: the rate is lr / (1 + decay * step)", number)
    momentum: float = option(0.9, "momentum of SGD", probability)
    weight_decay: float = option(0.0, "weight decay, not of slopes and BatchNorm", number)
    batch: int = option(32, "patches of a step, in each process", count)
    steps: int = option(100, "steps of an epoch", count)
    epochs: int = option(20, "epochs", count)
    patch: int = option(48, "side of a patch in pixels", count)
    turn: bool = option(False, "turn and mirror patches at random")
    seed: int = option(0, "seed of weights, patches, dropout and rrelu's slopes", whole)
    device: str = option("auto", "cpu, cuda, cuda:1; auto takes a GPU where there is one")
    dtype: str = option("float32", "type of the weights", choices=DTYPES)
    amp: str = option("none", "automatic mixed precision", choices=AMP)
    tensorboard: bool = option(False, "write TensorBoard logs into the run's folder")

    @property
    def folder(self) -> Path:
        return Path(self.output)

    def as_dict(self) -> dict[str, Any]:
        """The options for JSON and for a checkpoint."""
        return {**dataclasses.asdict(self), "rates": list(self.rates)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Returns the configuration of `as_dict`. Raises RunError for names that this version does not know."""
        unknown = values.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise RunError(f"a configuration with options that are unknown here: {', '.join(sorted(unknown))}")
        return cls(**{**values, "rates": tuple(values.get("rates", cls.rates))})

    def differences(self, other: Config) -> list[str]:
        """Returns "act prelu instead of relu" for each option that differs, but for PLACES: own value first."""
        mine, others = self.as_dict(), other.as_dict()
        return [
            f"{name} {show(mine[name])} instead of {show(others[name])}"
            for name in mine if name not in PLACES and mine[name] != others[name]
        ]  # fmt: skip

    def text(self) -> str:
        """One line an option: its value, and the default where it differs."""
        default = Config().as_dict()
        return "\n".join(
            f"  {name:13}{show(value)}" + ("" if value == default[name] else f"  (default {show(default[name])})")
            for name, value in self.as_dict().items()
        )


def show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of Config, with its default."""
    for field in dataclasses.fields(Config):
        name, about = f"--{field.name.replace('_', '-')}", field.metadata
        if isinstance(field.default, bool):
            parser.add_argument(name, action="store_true", help=about["help"])
            continue
        listed = f": {', '.join(map(str, about['choices']))}" if about["choices"] else ""
        text = about["help"] + listed + ("" if field.default is None else f" (default {show(field.default)})")
        parser.add_argument(
            name, type=about["parse"], choices=about["choices"], default=field.default,
            metavar=field.name.upper(), help=text,
        )  # fmt: skip


def from_arguments(args: argparse.Namespace) -> Config:
    return Config(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Config)})
