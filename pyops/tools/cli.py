"""python -m atrous info | demo | explain | tune | export: parse the command line and run the command.

A user's error ends in one line on stderr and exit status 2. Each command imports what it needs when it runs, so that
--help is fast.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .. import models
from ..backends import selection
from ..core import activation
from ..core.checks import UsageError, writable
from ..models import resnet

RESNETS = ("resnet18", "resnet34", "resnet50")
MODELS = (*RESNETS, "drn_c_26", "drn_d_22", "prelu_net14")
MODEL = f"{', '.join(MODELS)} or package.module:factory"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that prints an error without the usage lines before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        writable("--json", args.json)
        status = args.run(args)
        sys.stdout.flush()
        return status
    except UsageError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(f"atrous {args.command}: {'; '.join(lines).replace(':; ', ': ')}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does; nothing may be written to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> Parser:
    from .demo import command as demo_command
    from .explain import command as explain_command
    from .export import command as export_command
    from .slopes import command as slopes
    from .tune import command as tune_command

    parser = Parser(prog="atrous", description="Fused (dilated) conv2d + BatchNorm + activation + residual for torch.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    info = _command(commands, "info", _info, "show versions, the build, and for each backend whether it can run here")
    required = "exit with status 1 unless these backends can run here"
    info.add_argument("--require", type=_backends, default=(), metavar="NAME,NAME", help=required)
    demo = _command(commands, "demo", _demo, "compare a ResNet34 with its fused copy on photographs: outputs and speed")
    explain = _command(commands, "explain", _explain, "list a model's layers: sizes, backends, lower bounds of time")
    tune = _command(commands, "tune", _tune, "benchmark every backend on a model's layers and save the fastest")
    export = _command(commands, "export", _export, "compile a fused model to a package that C++ runs on a CPU")
    for command in (info, demo, explain, tune, export):
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")
    demo_command.add_arguments(demo)

    explain.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    explain.add_argument("--batch", type=_count, default=1, metavar="N", help="batch size (default 1)")
    _choice(explain, "--backend", ("auto", *selection.backends()), "NAME", "of the convolutions", default="auto")
    explain_command.add_arguments(explain)
    slopes.add_arguments(explain)
    _add_model_options(explain, (224, 224), 3)

    tune.add_argument("model", metavar="MODEL", help=f"{MODEL}, or a .json file of layers")
    tune.add_argument("--batch", type=_counts, metavar="N,N", help="batch sizes (default 1, or those in the file)")
    tune_command.add_arguments(tune)
    _add_model_options(tune, None, None)

    export.add_argument("model", metavar="MODEL", help=MODEL)
    export.add_argument("--batch", type=_count, metavar="N", help="a fixed batch size (default any)")
    export_command.add_arguments(export)
    _add_model_options(export, (224, 224), 3)
    return parser


def _add_model_options(command, size: tuple[int, int] | None, channels: int | None) -> None:
    """Adds the options of the input image and of the ResNets."""
    command.add_argument("--size", type=_size, default=size, metavar="H[xW]", help="image size (default 224)")
    command.add_argument("--channels", type=_count, default=channels, metavar="C", help="image channels (default 3)")
    options = command.add_argument_group("ResNets only")
    _choice(options, "--act", tuple(activation.ACTIVATIONS), "NAME", "activation")
    _choice(options, "--output-stride", (8, 16, 32), "N", "if below 32, the last stages are dilated", type=int)
    options.add_argument("--multi-grid", type=_counts, metavar="A,B,C", help="dilation factors of the last stage")
    _choice(options, "--first-dilation", resnet.FIRST_DILATIONS, "NAME", "dilation of a stage's first convolution")


def _command(commands, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def _choice(parser, name: str, choices: tuple, metavar: str, text: str, **more) -> None:
    """Adds an option that lists its choices in its help: argparse's {a,b,c} is too wide for a narrow terminal."""
    listed = ", ".join(map(str, choices))
    parser.add_argument(name, choices=choices, metavar=metavar, help=f"{text}: {listed}", **more)


def _info(args) -> int:
    from . import info as build_info

    info = build_info.collect()
    print(build_info.render(info))
    _write_json(args.json, info)
    missing = build_info.missing(info, args.require)
    if missing:
        print(f"atrous info: --require: {'; '.join(missing)}", file=sys.stderr)
    return int(bool(missing))


def _demo(args) -> int:
    from .demo import command as demo

    return demo.main(args)


def _explain(args) -> int:
    from .explain import command as explain_command
    from .slopes import command as slopes

    if args.slopes:
        result = slopes.run(args, _parser().parse_args(["explain"]))
    elif args.plot or not args.model:
        given = "--plot without --slopes" if args.plot else "neither"
        raise UsageError(f"expected a MODEL, or --slopes CHECKPOINT [--plot FILE], got {given}")
    else:
        result = explain_command.run(args, _model(args))
    _write_json(args.json, result)
    return 0


def _tune(args) -> int:
    from .tune import command as tune_command

    return tune_command.run(args, _model, lambda result: _write_json(args.json, result))


def _export(args) -> int:
    from .export import command as export_command

    _write_json(args.json, export_command.run(args, _model(args)))
    return 0


def _model(args):
    names = ("act", "output_stride", "multi_grid", "first_dilation")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        if options and args.model not in RESNETS:
            option = next(iter(options)).replace("_", "-")
            raise UsageError(f"--{option} is for {', '.join(RESNETS)}, not for {args.model}")
        if args.model in MODELS:
            return getattr(models, args.model)(in_channels=args.channels, **options)
        return _imported(args.model)
    except UsageError:
        raise
    except Exception as error:  # a user's own module may raise anything
        raise UsageError(f"{args.model}: {type(error).__name__}: {error}") from error


def _imported(name: str):
    """Imports package.module:factory or package.module:model, also from the current folder, as python -m does."""
    from torch import nn

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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part.strip()) for part in text.split(","))


def _backends(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in selection.backends():
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(selection.backends())}, got {name!r}")
    return names


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    return _count(height), _count(width if x else height)


def _write_json(path: Path | None, result: dict) -> None:
    if path is None:
        return
    text = json.dumps(result, indent=2) + "\n"
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, for example
            path.write_text(text)
            return
        # The file is complete at all times: tune writes it anew after every layer.
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(text)
        part.replace(path)
    except OSError as error:
        raise UsageError(f"--json: {error}") from error
