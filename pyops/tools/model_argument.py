"""The argument MODEL of the command line: a model of this package or of the user's, and the options that build it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

from torch import nn

from .. import models
from ..core import activation
from ..core.checks import UsageError
from ..models import resnet

RESNETS = ("resnet18", "resnet34", "resnet50")
MODELS = (*RESNETS, "drn_c_26", "drn_d_22", "prelu_net14")
MODEL = f"{', '.join(MODELS)} or package.module:factory"
OPTIONS = ("act", "output_stride", "multi_grid", "hdc", "first_dilation")  # for the ResNets


def add_options(command: argparse.ArgumentParser, size: tuple[int, int] | None, channels: int | None) -> None:
    """Adds the options of the input image and of the ResNets."""
    command.add_argument("--size", type=_size, default=size, metavar="H[xW]", help="image size (default 224)")
    command.add_argument("--channels", type=count, default=channels, metavar="C", help="image channels (default 3)")
    options = command.add_argument_group("ResNets only")
    choice(options, "--act", tuple(activation.ACTIVATIONS), "NAME", "activation")
    choice(options, "--output-stride", (8, 16, 32), "N", "if below 32, the last stages are dilated", type=int)
    options.add_argument("--multi-grid", type=counts, metavar="A,B,C", help="dilation factors of the last stage")
    options.add_argument("--hdc", type=counts, metavar="A,B,C", help="dilations of a dilated stage's blocks, in turn")
    choice(options, "--first-dilation", resnet.FIRST_DILATIONS, "NAME", "dilation of a stage's first convolution")


def choice(parser, name: str, choices: tuple, metavar: str, text: str, **more) -> None:
    """Adds an option that lists its choices in its help: argparse's {a,b,c} is too wide for a narrow terminal."""
    listed = ", ".join(map(str, choices))
    parser.add_argument(name, choices=choices, metavar=metavar, help=f"{text}: {listed}", **more)


def load(args: argparse.Namespace) -> nn.Module:
    """The model that the arguments name. Raises UsageError, for errors of the user's own module too."""
    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    try:
        if options and args.model not in RESNETS:
            option = next(iter(options)).replace("_", "-")
            raise UsageError(f"--{option} is for {', '.join(RESNETS)}, not for {args.model}")
        if args.model in MODELS:
            return getattr(models, args.model)(in_channels=args.channels or 3, **options)
        return _imported(args.model)
    except UsageError:
        raise
    except Exception as error:  # a user's own module may raise anything
        raise UsageError(f"{args.model}: {type(error).__name__}: {error}") from error


def _imported(name: str) -> nn.Module:
    """Imports package.module:factory or package.module:model, also from the current folder, as python -m does."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UsageError(f"MODEL: expected {MODEL}, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    value: Any = importlib.import_module(module)
    for part in attribute.split("."):
        value = getattr(value, part)
    model = value if isinstance(value, nn.Module) else value()
    if not isinstance(model, nn.Module):
        raise UsageError(f"MODEL: expected {name} to return a torch.nn.Module, got {type(model).__name__}")
    return model


def positive(option: str, value: float) -> None:
    """Raises UsageError unless an option's number is positive."""
    if not value > 0:
        raise UsageError(f"{option}: expected a positive number, got {value:g}")


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    return tuple(count(part.strip()) for part in text.split(","))


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    try:
        return count(height), count(width if x else height)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected H or HxW, positive integers, got {text!r}") from None
