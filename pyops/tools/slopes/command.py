"""python -m atrous explain --slopes: the slopes that a PReLU network has learned, by depth, from its checkpoint."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ...core.checks import UsageError
from ...core.files import save, writable
from ...models import read_weights
from . import report
from .slopes import learned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that explain takes instead of a MODEL."""
    text = "instead of a MODEL: the PReLU slopes in this file, by depth"
    parser.add_argument("--slopes", type=Path, metavar="CHECKPOINT", help=text)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --slopes: also draw them (PNG)")


def run(args: argparse.Namespace, defaults: argparse.Namespace) -> dict:
    """Draws the plot and prints the table; returns the result for JSON. defaults: the arguments of a bare `explain`."""
    for name, value in vars(args).items():
        if name not in ("slopes", "plot", "json") and value != getattr(defaults, name):
            given = f"MODEL {value}" if name == "model" else f"--{name.replace('_', '-')}"
            raise UsageError(f"--slopes: expected neither MODEL nor an option of a model, got {given}")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install matplotlib")
    writable("--plot", args.plot)
    try:
        weights = read_weights(args.slopes)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"--slopes: {str(error).removeprefix('path: ')}") from error
    if args.slopes.suffix == ".safetensors":  # the file has no order: sort by name, numbers in it by value
        weights = dict(sorted(weights.items(), key=_natural))
    slopes = learned(weights)
    if not slopes:
        raise UsageError(f"--slopes: expected a checkpoint of a network with PReLU, but {args.slopes} has no slopes")
    if args.plot:
        save("--plot", args.plot, report.plot(slopes, args.slopes.name))
    print(report.table(slopes, shutil.get_terminal_size().columns))
    return {"checkpoint": str(args.slopes), "slopes": [asdict(tensor) for tensor in slopes]}


def _natural(item: tuple[str, Tensor]) -> list[tuple[int, int, str]]:
    """A sort key that puts layer3.2 before layer3.10."""
    parts = re.findall(r"\d+|\D+", item[0])
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
