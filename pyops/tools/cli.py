"""python -m atrous info | demo | explain | tune | export: what is installed, what it gives, what a model computes, who
is fast, and a package for C++.

A mistake that a user can make ends in one line on stderr and exit status 2. Each command imports what it needs itself,
so that --help answers at once.
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

from ..backends import selection
from ..core import activation
from ..core.checks import Mistake, writable
from ..models import resnet


class Parser(argparse.ArgumentParser):
    """argparse without the usage lines before an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        writable("--json", args.json)
        status = args.run(args)
        sys.stdout.flush()
        return status
    except Mistake as mistake:
        lines = [line.strip() for line in str(mistake).splitlines() if line.strip()]
        print(f"atrous {args.command}: {'; '.join(lines).replace(':; ', ': ')}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough, as in `| head`; nothing more may be written at exit
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
    info = _command(commands, "info", _info, "versions, how the library was built, which rows run here and why not")
    info.add_argument("--require", type=_rows, default=(), metavar="ROW,ROW", help="exit status 1 unless they run here")
    demo = _command(commands, "demo", _demo, "an ordinary ResNet34 and its fused twin on photographs, side by side")
    explain = _command(commands, "explain", _explain, "a model layer by layer: sizes, who convolves, the least time")
    tune = _command(commands, "tune", _tune, "measures who convolves a model the fastest, and keeps the choices")
    export = _command(commands, "export", _export, "a fused model as a package that C++ runs on a CPU, without Python")
    for command in (info, demo, explain, tune, export):
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")
    demo_command.add_arguments(demo)

    explain.add_argument("model", nargs="?", metavar="MODEL", help="resnet34, or package.module:factory")
    explain.add_argument("--batch", type=_count, default=1, metavar="N", help="images (default 1)")
    _choice(explain, "--backend", ("auto", *selection.rows()), "ROW", "the row to convolve", default="auto")
    explain_command.add_arguments(explain)
    slopes.add_arguments(explain)
    _about_model(explain, (224, 224), 3)

    tune.add_argument("model", metavar="MODEL", help="resnet34, package.module:factory, or a .json file of shapes")
    tune.add_argument("--batch", type=_counts, metavar="N,N", help="images (default 1, or those of the shapes)")
    tune_command.add_arguments(tune)
    _about_model(tune, None, None)

    export.add_argument("model", metavar="MODEL", help="resnet34, or package.module:factory")
    export.add_argument("--batch", type=_count, metavar="N", help="images in a call (default any number)")
    export_command.add_arguments(export)
    _about_model(export, (224, 224), 3)
    return parser


def _about_model(command, size: tuple[int, int] | None, channels: int | None) -> None:
    """The model's image, and the options of resnet34."""
    command.add_argument("--size", type=_size, default=size, metavar="H[xW]", help="of the image (default 224)")
    command.add_argument("--channels", type=_count, default=channels, metavar="C", help="of the image (default 3)")
    options = command.add_argument_group("resnet34 only")
    _choice(options, "--act", tuple(activation.ACTIVATIONS), "NAME", "activation")
    _choice(options, "--output-stride", (8, 16, 32), "N", "the last stages are dilated below 32", type=int)
    options.add_argument("--multi-grid", type=_counts, metavar="A,B,C", help="dilations of the last stage's blocks")
    _choice(options, "--first-dilation", resnet.FIRST_DILATIONS, "NAME", "of a dilated stage's first convolution")


def _command(commands, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def _choice(parser, name: str, choices: tuple, metavar: str, text: str, **more) -> None:
    """An option whose choices stand in its help: argparse's own {a,b,c} is too wide for a narrow terminal."""
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
        raise Mistake(f"expected a MODEL, or --slopes CHECKPOINT [--plot FILE], got {given}")
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
        if args.model == "resnet34":
            return resnet.resnet34(in_channels=args.channels, **options)
        if options:
            raise Mistake(f"--{next(iter(options)).replace('_', '-')} is for resnet34, not for {args.model}")
        return _imported(args.model)
    except Mistake:
        raise
    except Exception as error:  # a user's own module may raise anything
        raise Mistake(f"{args.model}: {type(error).__name__}: {error}") from error


def _imported(name: str):
    """package.module:factory, or package.module:model; the current folder counts, as under python -m."""
    from torch import nn

    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise Mistake(f"MODEL: expected resnet34 or package.module:factory, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    model = found if isinstance(found, nn.Module) else found()
    if not isinstance(model, nn.Module):
        raise Mistake(f"MODEL: expected {name} to give a torch.nn.Module, got {type(model).__name__}")
    return model


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part.strip()) for part in text.split(","))


def _rows(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in selection.rows():
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(selection.rows())}, got {name!r}")
    return names


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    return _count(height), _count(width if x else height)


def _write_json(path: Path | None, result: dict) -> None:
    if path is None:
        return
    text = json.dumps(result, indent=2) + "\n"
    try:
        if path.exists() and not path.is_file():  # as /dev/stdout
            path.write_text(text)
            return
        part = path.with_name(f"{path.name}.{os.getpid()}.part")  # whole or not at all: tune writes site by site
        part.write_text(text)
        part.replace(path)
    except OSError as error:
        raise Mistake(f"--json: {error}") from error
