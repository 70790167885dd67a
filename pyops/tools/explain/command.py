"""python -m atrous explain: a model layer by layer, and what runs each of its convolutions."""

from __future__ import annotations

import argparse
import math
import shutil

import torch
from torch import nn

from ...core.checks import Mistake
from . import training_report
from .explain import explain
from .target import CHIPS, target

DTYPES = ("float16", "bfloat16", "float32", "float64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What only explain asks for."""
    chips = f"for this chip, with --backend triton: {', '.join(CHIPS)} (default the card at hand, else sm_90)"
    dtypes = f"{', '.join(DTYPES)} (default on a CPU the model's own, on a card bfloat16)"
    ceilings = "peaks in this dtype, for the floor (default for sm_90 those of an H100)"
    parser.add_argument("--chip", choices=tuple(CHIPS), metavar="CHIP", help=chips)
    parser.add_argument("--dtype", choices=DTYPES, metavar="NAME", help=dtypes)
    train = "what a training step keeps and moves instead, beside the model as it is"
    parser.add_argument("--train", action="store_true", help=train)
    parser.add_argument("--ceilings", type=_ceilings, metavar="TFLOPS,GBS", help=ceilings)


def run(args: argparse.Namespace, model: nn.Module) -> dict:
    """Prints the explanation; returns it for JSON."""
    shape = (args.batch, args.channels, *args.size)
    if args.train:
        print(f"{args.model}, input {'x'.join(map(str, (*args.size, args.channels)))}, batch {args.batch}, training\n")
        return training_report.run(args.model, model, shape)
    try:
        dtype = getattr(torch, args.dtype) if args.dtype else None
        wanted = target(model, args.backend, args.chip, dtype, args.ceilings)
    except ValueError as error:
        raise Mistake(f"--{error}") from error
    try:
        explained = explain(model, shape, args.backend, wanted)
    except Exception as error:  # a user's own model may raise anything
        raise Mistake(f"{args.model} with an input of shape {shape}: {error}") from error
    print(f"{args.model}, input {'x'.join(map(str, (*args.size, args.channels)))}, batch {args.batch}")
    print(explained.render(shutil.get_terminal_size().columns))
    return {"model": args.model, **explained.as_dict()}


def _ceilings(text: str) -> tuple[float, float]:
    try:
        tflops, gbs = map(float, text.split(","))
        if not (0 < tflops < math.inf and 0 < gbs < math.inf):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected TFLOP/s,GB/s, two positive numbers, got {text!r}") from None
    return tflops, gbs
