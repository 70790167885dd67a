"""python -m atrous export: a fused model as a package that C++ runs on a CPU, without Python."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import models
from ...core.checks import Mistake, writable
from ...tuning.format import DTYPES
from .. import info
from .export import ROWS, export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What only export asks for."""
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.pt2", help="the package")
    weights = "a checkpoint to load into the model: .pt, .pth or .safetensors"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=weights)
    dtypes = f"{', '.join(DTYPES)} (default the model's own)"
    parser.add_argument("--dtype", choices=DTYPES, metavar="NAME", help=dtypes)
    rows = f"who convolves: {', '.join(ROWS)} (default %(default)s)"
    parser.add_argument("--backend", choices=ROWS, default="native", metavar="ROW", help=rows)


def run(args: argparse.Namespace, model: nn.Module) -> dict[str, Any]:
    """Writes the package, prints what it is; returns that for JSON."""
    if args.output.suffix != ".pt2":
        raise Mistake(f"--output: expected a name that ends in .pt2, got {str(args.output)!r}")
    writable("--output", args.output)
    model, weights = _prepared(model, args)
    about = _about(args, model)
    _say(f"{args.model}, input {about['input']}, batch {about['batch']}, {about['dtype']}, row {args.backend}")
    _say(weights)
    batch = args.batch or 2
    example = torch.randn(batch, args.channels, *args.size, generator=torch.Generator().manual_seed(0))
    example = example.to(getattr(torch, about["dtype"]))
    try:
        made = export(model, example, args.output, backend=args.backend, dynamic=not args.batch, about=about)
    except Exception as error:  # a user's own model may raise anything, and the compiler's say is long
        said = str(error).strip().split("\n")[0]
        raise Mistake(f"{args.model} with an input of shape {tuple(example.shape)}: {said}") from error
    fused, sites = made.report.counts
    size = args.output.stat().st_size
    _say(f"sites fused {fused}/{sites}; largest difference from the model as it is: {made.difference:.2g}")
    _say(f"written: {args.output} ({size / 1e6:.0f} MB, compiled in {made.seconds:.0f} s)")
    _say(f"C++ loads it after {Path(__file__).parents[2] / 'libatrous.so'}: see examples/cpp")
    return {
        **about, "backend": args.backend, "package": str(args.output), "bytes": size, "seconds": made.seconds,
        "difference": made.difference, "fusion": made.report.to_dict(), "versions": info.versions(),
    }  # fmt: skip


def _prepared(model: nn.Module, args: argparse.Namespace) -> tuple[nn.Module, str]:
    """The model as it is exported, and a line that says where its weights come from."""
    told = "weights: random, its classes mean nothing" if args.model == "resnet34" else "weights: those of the model"
    if args.weights:
        try:
            missing = models.load_weights(model, args.weights)
        except (OSError, ValueError, ImportError) as error:
            raise Mistake(f"--weights: {str(error).removeprefix('path: ')}") from error
        told = f"weights: {args.weights}" + (f", which has no {', '.join(missing)}" if missing else "")
    return model.eval().cpu().to(getattr(torch, args.dtype) if args.dtype else None), told


def _about(args: argparse.Namespace, model: nn.Module) -> dict[str, str]:
    """What the package says of itself: get_metadata() of torch's loader, in C++ and in Python."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return {
        "model": args.model,
        "input": "x".join(map(str, (args.channels, *args.size))),
        "batch": str(args.batch or "any"),
        "dtype": str(dtype).removeprefix("torch."),
        "atrous": info.versions()["atrous"],
    }


def _say(line: str) -> None:
    width = shutil.get_terminal_size().columns
    print(textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False), flush=True)
