"""python -m atrous explain: a model layer by layer, and the backend of each of its convolutions."""

from __future__ import annotations

import argparse
import math
import shutil

import torch
from torch import nn

from ...core.checks import UsageError
from ...tuning.format import DTYPES
from . import training_report
from .explain import explain
from .report import render
from .target import CHIPS, target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only explain has."""
    chips = f"the GPU, with --backend triton: {', '.join(CHIPS)} (default this machine's, else sm_90)"
    dtypes = f"{', '.join(DTYPES)} (default the model's own on a CPU, bfloat16 on a GPU)"
    train = "report what a training step saves and moves, eager and fused"
    ceilings = "peaks in this dtype, for the lower bound of the time (default for sm_90 assumed for an H100)"
    parser.add_argument("--chip", choices=tuple(CHIPS), metavar="CHIP", help=chips)
    parser.add_argument("--dtype", choices=DTYPES, metavar="NAME", help=dtypes)
    parser.add_argument("--train", action="store_true", help=train)
    parser.add_argument("--ceilings", type=_ceilings, metavar="TFLOPS,GBS", help=ceilings)


def run(args: argparse.Namespace, model: nn.Module) -> dict:
    """Prints the explanation; returns it for JSON."""
    shape = (args.batch, args.channels, *args.size)
    title = f"{args.model}, input {'x'.join(map(str, (*args.size, args.channels)))}, batch {args.batch}"
    if args.train:
        print(f"{title}, training\n")
        return training_report.run(args.model, model, shape)
    try:
        dtype = getattr(torch, args.dtype) if args.dtype else None
        wanted = target(model, args.backend, args.chip, dtype, args.ceilings)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    try:
        explanation = explain(model, shape, args.backend, wanted)
    except Exception as error:  # a user's own model may raise anything
        raise UsageError(f"{args.model} with an input of shape {shape}: {error}") from error
    print(title)
    print(render(explanation, shutil.get_terminal_size().columns))
    return {"model": args.model, **explanation.as_dict()}


def _ceilings(text: str) -> tuple[float, float]:
    try:
        tflops, gbs = map(float, text.split(","))
        if not (0 < tflops < math.inf and 0 < gbs < math.inf):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected TFLOP/s,GB/s, two positive numbers, got {text!r}") from None
    return tflops, gbs
