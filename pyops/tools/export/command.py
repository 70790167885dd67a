"""python -m atrous export: a fused model as a package that C++ runs on a CPU, without Python."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import models
from ...core.checks import UsageError
from ...core.files import writable
from ...tuning.format import DTYPES
from .. import info
from ..text_table import wrap
from .export import BACKENDS, export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only export has."""
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.pt2", help="the package to write")
    weights = "a checkpoint to load into the model: .pt, .pth or .safetensors"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=weights)
    dtypes = f"{', '.join(DTYPES)} (default the model's own)"
    parser.add_argument("--dtype", choices=DTYPES, metavar="NAME", help=dtypes)
    backends = f"{', '.join(BACKENDS)} (default %(default)s)"
    parser.add_argument("--backend", choices=BACKENDS, default="native", metavar="NAME", help=backends)


def run(args: argparse.Namespace, model: nn.Module) -> dict[str, Any]:
    """Writes the package and prints a description; returns the description for JSON."""
    if args.output.suffix != ".pt2":
        raise UsageError(f"--output: expected a name that ends in .pt2, got {str(args.output)!r}")
    writable("--output", args.output)
    model, weights = _prepared(model, args)
    about = _about(args, model)
    _say(f"{args.model}, input {about['input']}, batch {about['batch']}, {about['dtype']}, backend {args.backend}")
    _say(weights)
    batch = args.batch or 2
    example = torch.randn(batch, args.channels, *args.size, generator=torch.Generator().manual_seed(0))
    example = example.to(getattr(torch, about["dtype"]))
    try:
        exported = export(model, example, args.output, backend=args.backend, dynamic=not args.batch, about=about)
    except Exception as error:  # a user's own model may raise anything, and the compiler's message is long
        message = str(error).strip().split("\n")[0]
        raise UsageError(f"{args.model} with an input of shape {tuple(example.shape)}: {message}") from error
    fused, total = exported.report.counts
    size = args.output.stat().st_size
    _say(f"layers fused {fused}/{total}; largest difference from the unfused model: {exported.difference:.2g}")
    _say(f"written: {args.output} ({size / 1e6:.0f} MB, compiled in {exported.seconds:.0f} s)")
    _say(f"C++ loads it after {Path(__file__).parents[2] / 'libatrous.so'}: see examples/cpp")
    return {
        **about, "backend": args.backend, "package": str(args.output), "bytes": size, "seconds": exported.seconds,
        "difference": exported.difference, "fusion": exported.report.to_dict(), "versions": info.versions(),
    }  # fmt: skip


def _prepared(model: nn.Module, args: argparse.Namespace) -> tuple[nn.Module, str]:
    """The model to export, and a line that says where its weights come from."""
    random = ":" not in args.model  # a model of this package
    source = "weights: random, its classes mean nothing" if random else "weights: those of the model"
    if args.weights:
        try:
            missing = models.load_weights(model, args.weights)
        except (OSError, ValueError, ImportError) as error:
            raise UsageError(f"--weights: {str(error).removeprefix('path: ')}") from error
        source = f"weights: {args.weights}" + (f", which has no {', '.join(missing)}" if missing else "")
    return model.eval().cpu().to(getattr(torch, args.dtype) if args.dtype else None), source


def _about(args: argparse.Namespace, model: nn.Module) -> dict[str, str]:
    """The package's metadata, which torch's loader returns from get_metadata(), in C++ and in Python."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return {
        "model": args.model,
        "input": "x".join(map(str, (args.channels, *args.size))),
        "batch": str(args.batch or "any"),
        "dtype": str(dtype).removeprefix("torch."),
        "atrous": info.versions()["atrous"],
    }


def _say(line: str) -> None:
    print(wrap(line, shutil.get_terminal_size().columns), flush=True)
