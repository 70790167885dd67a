"""The command line of the experiment: parse, run, and end with one sentence and exit status 2 at a user's error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from atrous.tools.cli import Parser

from . import config as options
from .config import RunError
from .data import DataError


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return args.call(args) or 0
    except (RunError, DataError) as error:
        print(f"vessels {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk that is full, a folder that is not writable
        print(f"vessels {args.command}: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        trains = args.command in ("train", "compare")
        advice = "; the same command goes on behind the last finished epoch" if trains else ""
        print(f"vessels {args.command}: stopped{advice}", file=sys.stderr)
        return 130


def parser() -> Parser:
    whole = Parser(prog="vessels", description="Vessel segmentation on fundus images with atrous's fused layers.")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    train = _command(commands, "train", _train, "train a network; a run that was stopped goes on")
    options.add_arguments(train)
    train.add_argument("--resume", action="store_true", help="fail unless the run's folder has a checkpoint")
    from . import commands as on_checkpoint
    from .comparison.command import add_compare, compare
    from .report.command import add_report, report

    for name, add, call, text in (
        (
            "evaluate",
            on_checkpoint.add_evaluate,
            on_checkpoint.evaluate,
            "print and write all figures of a checkpoint",
        ),
        ("predict", on_checkpoint.add_predict, on_checkpoint.predict, "write probabilities of images as PNGs"),
        ("export", on_checkpoint.add_export, on_checkpoint.export_package, "write the package that C++ runs"),
        ("report", add_report, report, "write one page on one or several runs: figures, curves, pictures, costs"),
        ("compare", add_compare, compare, "train arms that differ in one factor each, and write a table of them"),
    ):
        add(_command(commands, name, call, text))
    return whole


def _command(commands, name: str, call: Callable, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(call=call)
    return command


def _train(args: argparse.Namespace) -> None:
    from .training import train

    train(options.from_arguments(args), resume=args.resume)
