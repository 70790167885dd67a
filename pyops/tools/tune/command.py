"""python -m atrous tune: measures who convolves a model's sites, or those of a file, and keeps the choices."""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import tuning
from ...core.checks import Mistake
from ...tuning.device_id import device_name, file_name, versions
from ...tuning.format import DTYPES, LAYOUTS, Table
from .. import timing
from ..explain.conv_sites import Site, sites
from . import measure as tuner
from . import shapes_file
from .candidates import forms
from .report import describe, table

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
FOR_MODELS = ("size", "channels", "act", "output_stride", "multi_grid", "first_dilation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What only tune asks for."""
    dtypes = f"{', '.join(DTYPES)} (default on a card bfloat16, else float32)"
    layouts = f"of the feature maps: {', '.join(LAYOUTS)} (default on a card channels_last, else NCHW)"
    output = "the table: a file, or a folder for one (default in the user's cache, where atrous finds it)"
    parser.add_argument("--dtype", choices=DTYPES, metavar="NAME", help=dtypes)
    parser.add_argument("--layout", choices=LAYOUTS, metavar="NAME", help=layouts)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), metavar="NAME", help="cpu, cuda (default a card's, if any)"
    )
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="at most (default %(default)g)")
    parser.add_argument("--output", type=Path, metavar="FILE", help=output)
    parser.add_argument("--commit", metavar="ID", help="of the sources, kept in the table")


def run(
    args: argparse.Namespace,
    model_of: Callable[[argparse.Namespace], nn.Module],
    tell: Callable[[dict[str, Any]], None],
) -> int:
    """Measures, prints and keeps the choices, and tells what is measured after each site, ready for JSON.

    Returns 1 if a result was wrong or there is none.
    """
    device = _device(args.device)
    dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    layout = args.layout or ("channels_last" if device.type == "cuda" else "NCHW")
    if not args.seconds > 0:
        raise Mistake(f"--seconds: expected a positive number, got {args.seconds:g}")
    path = _output(args.output, device)
    jobs = tuner.jobs(_sites(args, model_of), forms(device, getattr(torch, dtype), FORMATS[layout]))
    print(f"{args.model}: {len(jobs)} to measure, {dtype}, {layout}\n{device_name(device)}\n", flush=True)
    about = Table(device_name(device), versions(device), datetime.date.today().isoformat(), {}, commit=args.commit)
    if device.type == "cuda":
        about = about._replace(ceilings=tuning.ceilings(device) or timing.ceilings(device))
    told = {**about._asdict(), "dtype": dtype, "layout": layout, "table": None, "entries": []}
    results = []
    for result in _bar(tuner.tune(jobs, args.seconds), len(jobs)):
        results.append(result)
        if result.key and result.entry:
            _save(path, about._replace(entries={result.key: result.entry}))
            told["table"] = str(path)
        told["entries"].append(_as_dict(result))
        tell(told)
    print(table(results))
    if told["table"]:
        print(f"written: {path}\nto undo: delete that file")
    return int(not told["table"] or any(result.wrong for result in results))


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise Mistake("--device: expected a card that torch can use for cuda, found none")
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def _output(path: Path | None, device: torch.device) -> Path:
    """Where the table goes; checked before the work, so that none of it is lost."""
    folder = tuning.user_folder()
    path = path or (folder and folder / file_name(device))
    if path is None:
        raise Mistake("--output: expected a file, since there is no home folder for a default")
    path = path / file_name(device) if path.is_dir() else path
    try:
        if os.path.lexists(path):
            tuning.read(path)
    except (OSError, ValueError) as error:
        raise Mistake(f"--output: expected a new file or a table, got {str(path)!r}: {error}") from error
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Mistake(f"--output: expected a file that can be written, got {str(path)!r}")
    return path


def _sites(args: argparse.Namespace, model_of: Callable[[argparse.Namespace], nn.Module]) -> list[Site]:
    if args.model.endswith(".json"):
        return _listed(args)
    args.size, args.channels = args.size or (224, 224), args.channels or 3
    model, batches = model_of(args), args.batch or (1,)
    try:
        found = [site for batch in batches for site in sites(model, (batch, args.channels, *args.size))]
    except Exception as error:  # a user's own model may raise anything
        raise Mistake(f"{args.model} with an image of {args.channels, *args.size}: {error}") from error
    if not found:
        raise Mistake(f"{args.model}: expected a model with 2-D convolutions, found none")
    return found


def _listed(args: argparse.Namespace) -> list[Site]:
    for name in FOR_MODELS:
        if getattr(args, name) is not None:
            raise Mistake(f"--{name.replace('_', '-')} is for a model, not for {args.model}")
    try:
        found = shapes_file.read(Path(args.model))
    except (OSError, ValueError) as error:
        raise Mistake(f"{args.model}: {error}") from error
    if not args.batch:
        return found
    return [replace(site, input=(batch, *site.input[1:])) for batch in args.batch for site in found]


def _save(path: Path, table: Table) -> None:
    try:
        tuning.save(path, table)
    except (OSError, ValueError) as error:
        raise Mistake(f"--output: {path}: {error}") from error


def _bar(results: Iterable[tuner.Result], total: int) -> Iterable[tuner.Result]:
    """A bar on stderr; none where stderr is no terminal, or tqdm is absent."""
    try:
        from tqdm import tqdm
    except ImportError:
        return results
    return tqdm(results, total=total, disable=None, leave=False, bar_format="{percentage:3.0f}% |{bar:20}| {eta}")


def _as_dict(result: tuner.Result) -> dict[str, Any]:
    names = ("milliseconds", "wrong", "failed", "not_measured", "unlikely", "compiling", "reason")
    return {
        "site": result.site.name,
        "shape": describe(result.site),
        "frozen": result.form.frozen,
        "key": result.key and result.key._asdict(),
        "choice": result.entry and result.entry.backend,
        **{name: getattr(result, name) for name in names},
    }
