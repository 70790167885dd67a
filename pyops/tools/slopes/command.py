"""python -m atrous explain --slopes: the slopes that a PReLU network has learned, by depth, from its checkpoint."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...core import checks
from ...core.checks import Mistake
from ...models import read_weights
from . import report as slopes_report

SIBLINGS = ("bias", "running_mean", "running_var")
NORM = re.compile(r"norm|^(ln|rms)", re.IGNORECASE)  # nn.RMSNorm, nn.LayerNorm(bias=False): 1-D weights, no bias


@dataclass(frozen=True)
class Slopes:
    """One slope tensor of a checkpoint; the numbers are of the finite slopes, None where there is none."""

    name: str
    channels: int
    min: float | None
    mean: float | None
    max: float | None
    below_0: int
    above_1: int
    not_finite: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What explain takes for a checkpoint instead of a MODEL."""
    text = "instead of a MODEL: the slopes of PReLU in this file, by depth"
    parser.add_argument("--slopes", type=Path, metavar="CHECKPOINT", help=text)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --slopes: also draw them (PNG)")


def run(args: argparse.Namespace, plain: argparse.Namespace) -> dict:
    """Draws the plot and prints the table; returns the result for JSON. plain: the arguments where none is given."""
    for name, value in vars(args).items():
        if name not in ("slopes", "plot", "json") and value != getattr(plain, name):
            given = f"MODEL {value}" if name == "model" else f"--{name.replace('_', '-')}"
            raise Mistake(f"--slopes: expected no MODEL and no options of one, got {given}")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise Mistake("--plot needs matplotlib: pip install matplotlib")
    checks.writable("--plot", args.plot)
    try:
        weights = read_weights(args.slopes)
    except (OSError, ValueError, ImportError) as error:
        raise Mistake(f"--slopes: {str(error).removeprefix('path: ')}") from error
    # A safetensors file keeps no order: the names' own then, numbers in them as numbers.
    found = learned(dict(sorted(weights.items(), key=_natural)) if args.slopes.suffix == ".safetensors" else weights)
    if not found:
        raise Mistake(f"--slopes: expected a checkpoint of a network with PReLU, but {args.slopes} has no slopes")
    if args.plot:
        try:
            slopes_report.plot(found, args.slopes.name, args.plot)
        except OSError as error:
            raise Mistake(f"--plot: {error}") from error
    print(slopes_report.table(found, shutil.get_terminal_size().columns))
    return {"checkpoint": str(args.slopes), "slopes": [asdict(slopes) for slopes in found]}


def learned(weights: Mapping[str, Tensor]) -> list[Slopes]:
    """The slope tensors of a state_dict, in its order, which is that of the modules' definition: the depth.

    A state_dict has names and shapes alone. A slope tensor is one of floating type, 1-D, named "weight", that has no
    "bias", "running_mean" or "running_var" beside it, as BatchNorm's has. A normalisation without a bias looks the
    same: it is left out where its module's name has "norm" in it, or begins with "ln" or "rms".
    """
    found = []
    for name, value in weights.items():
        prefix = name.removesuffix("weight")
        if name.rpartition(".")[2] != "weight" or value.dim() != 1 or not value.is_floating_point():
            continue
        beside = any(prefix + sibling in weights for sibling in SIBLINGS)
        if value.numel() and not beside and not NORM.search(prefix.rstrip(".").rpartition(".")[2]):
            found.append(_summary(name, value))
    return found


def _summary(name: str, value: Tensor) -> Slopes:
    finite = value[value.isfinite()].double()
    low, mean, high = (float(f(finite)) if finite.numel() else None for f in (torch.min, torch.mean, torch.max))
    below, above = int((finite < 0).sum()), int((finite > 1).sum())
    return Slopes(name, value.numel(), low, mean, high, below, above, value.numel() - finite.numel())


def _natural(item: tuple[str, Tensor]) -> list[tuple[int, int, str]]:
    """layer3.2 before layer3.10."""
    parts = re.findall(r"\d+|\D+", item[0])
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
