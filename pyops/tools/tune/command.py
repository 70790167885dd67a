"""python -m atrous tune: benchmark every backend on the layers of a model or a file, and save the fastest."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import testing, tuning
from ...core.checks import UsageError
from ...core.files import reason
from ...tuning.device_id import device_name, file_name, versions
from ...tuning.format import DTYPES, LAYOUTS, Table
from .. import timing
from ..explain.conv_layers import ConvLayer, conv_layers
from ..model_argument import OPTIONS, positive
from . import earlier_run, shapes_file
from . import measure as tuner
from .candidates import forms
from .report import describe, table

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
FOR_MODELS = ("size", "channels", *OPTIONS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only tune has."""
    dtypes = f"{', '.join(DTYPES)} (default bfloat16 on a GPU, else float32)"
    layouts = f"of the feature maps: {', '.join(LAYOUTS)} (default channels_last on a GPU, else NCHW)"
    devices = "cpu or cuda (default cuda if there is a GPU)"
    seconds = "time budget of the measurements (default %(default)g)"
    output = "where to save the table: a file or a folder (default in the user's cache, where atrous finds it)"
    parser.add_argument("--dtype", choices=DTYPES, metavar="NAME", help=dtypes)
    parser.add_argument("--layout", choices=LAYOUTS, metavar="NAME", help=layouts)
    parser.add_argument("--device", choices=("cpu", "cuda"), metavar="NAME", help=devices)
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help=seconds)
    parser.add_argument("--output", type=Path, metavar="FILE", help=output)
    again = "go on with the file of --json: measure the layers that an interrupted run did not reach"
    parser.add_argument("--continue", dest="again", action="store_true", help=again)
    parser.add_argument("--commit", metavar="ID", help="commit of the sources, saved in the table")


def run(
    args: argparse.Namespace,
    model_of: Callable[[argparse.Namespace], nn.Module],
    write_json: Callable[[dict[str, Any]], None],
) -> int:
    """Measures, prints and saves the fastest backends, and writes the JSON result anew after each layer.

    Returns 1 if a result was wrong or nothing was measured, GPU_LOST after a sticky CUDA error.
    """
    device = _device(args.device)
    dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    layout = args.layout or ("channels_last" if device.type == "cuda" else "NCHW")
    positive("--seconds", args.seconds)
    path = _output(args.output, device)
    jobs = tuner.jobs(_layers(args, model_of), forms(device, getattr(torch, dtype), FORMATS[layout]))
    empty = Table(device_name(device), versions(device), datetime.date.today().isoformat(), {}, commit=args.commit)
    report = {**empty._asdict(), "dtype": dtype, "layout": layout, "table": None, "entries": []}
    if args.again:
        report |= earlier_run.read(args.json, report)
        jobs = earlier_run.missing(jobs, report["entries"])
    print(f"{args.model}: {len(jobs)} to measure, {dtype}, {layout}\n{device_name(device)}\n", flush=True)
    if device.type == "cuda":
        report["ceilings"] = report["ceilings"] or tuning.ceilings(device) or timing.ceilings(device)
    results = []
    for result in _bar(tuner.tune(jobs, args.seconds), len(jobs)):
        results.append(result)
        if result.key and result.entry:
            _save(path, empty._replace(ceilings=report["ceilings"], entries={result.key: result.entry}))
            report["table"] = str(path)
        report["entries"].append(_as_dict(result))
        write_json(report)
    return _finish(report, results)


def _finish(report: dict[str, Any], results: list[tuner.Result]) -> int:
    """Prints the results; returns the exit status, in which those of an earlier run count."""
    if results and results[-1].lost:
        last = results[-1]
        print(f"atrous tune: the GPU was lost: {describe(last.layer)}: {last.reason}", file=sys.stderr)
        return testing.GPU_LOST
    print(table(results))
    if report["table"]:
        print(f"written: {report['table']}\nto undo: delete that file")
    return int(not report["table"] or any(entry["wrong"] for entry in report["entries"]))


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: expected a GPU that torch can use for cuda, found none")
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def _output(path: Path | None, device: torch.device) -> Path:
    """The file of the table, checked before measuring so that no measurement is lost."""
    folder = tuning.user_folder()
    path = path or (folder and folder / file_name(device))
    if path is None:
        raise UsageError("--output: expected a file, because there is no home folder for a default")
    path = path / file_name(device) if path.is_dir() else path
    try:
        if os.path.lexists(path):
            tuning.read(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--output: expected a new file or a table, got {str(path)!r}: {reason(error)}") from error
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"--output: expected a file that can be written, got {str(path)!r}")
    return path


def _layers(args: argparse.Namespace, model_of: Callable[[argparse.Namespace], nn.Module]) -> list[ConvLayer]:
    if args.model.endswith(".json"):
        return _layers_of_file(args)
    args.size, args.channels = args.size or (224, 224), args.channels or 3
    model, batches = model_of(args), args.batch or (1,)
    try:
        shapes = [(batch, args.channels, *args.size) for batch in batches]
        layers = [layer for shape in shapes for layer in conv_layers(model, shape)]
    except Exception as error:  # a user's own model may raise anything
        raise UsageError(f"{args.model} with an image of {args.channels, *args.size}: {error}") from error
    if not layers:
        raise UsageError(f"{args.model}: expected a model with 2-D convolutions, found none")
    return layers


def _layers_of_file(args: argparse.Namespace) -> list[ConvLayer]:
    for name in FOR_MODELS:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for a model, not for {args.model}")
    try:
        layers = shapes_file.read(Path(args.model))
    except OSError as error:
        raise UsageError(f"MODEL: expected a file of layers, got {args.model!r}: {reason(error)}") from error
    except ValueError as error:
        raise UsageError(f"{args.model}: {error}") from error
    if not args.batch:
        return layers
    return [replace(layer, input=(batch, *layer.input[1:])) for batch in args.batch for layer in layers]


def _save(path: Path, table: Table) -> None:
    try:
        tuning.save(path, table)
    except OSError as error:
        raise UsageError(f"--output: {error}") from error
    except ValueError as error:
        raise UsageError(f"--output: {path}: {error}") from error


def _bar(results: Iterable[tuner.Result], total: int) -> Iterable[tuner.Result]:
    """Shows a progress bar on stderr, if stderr is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return results
    return tqdm(results, total=total, disable=None, leave=False, bar_format="{percentage:3.0f}% |{bar:20}| {eta}")


def _as_dict(result: tuner.Result) -> dict[str, Any]:
    names = ("milliseconds", "wrong", "failed", "not_measured", "unlikely", "compiling", "reason", "lost")
    return {
        "layer": result.layer.name,
        "shape": describe(result.layer),
        "frozen": result.form.frozen,
        "key": result.key and result.key._asdict(),
        "choice": result.entry and result.entry.backend,
        **{name: getattr(result, name) for name in names},
    }
