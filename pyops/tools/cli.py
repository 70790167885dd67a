"""python -m atrous info | demo | explain | tune | audit | certify | export: parse the command line and run the command.

A user's error ends in one line on stderr and exit status 2. Each command imports what it needs when it runs, so that
--help is fast.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..backends import selection
from ..core.checks import UsageError
from ..core.files import save, writable
from .model_argument import MODEL, add_options, choice, count, counts, load

NUMBERS = r"\[\s+([\s\d.e+,-]+?)\s+\]"  # a list of numbers in JSON, which is written in one line


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
    except OSError as error:
        with contextlib.suppress(OSError):  # nothing more may be written to a closed pipe or a full disk, at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader closed the pipe, as `| head` does
            return 1
        print(f"atrous {args.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> Parser:
    from .audit import command as audit_command
    from .certify import command as certify_command
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
    audit = _command(commands, "audit", _audit, "find the pixels that dilated convolutions read, and their holes")
    certify = _command(commands, "certify", _certify, "measure every operator's error against fp64 on this machine")
    export = _command(commands, "export", _export, "compile a fused model to a package that C++ runs on a CPU")
    for command in (info, demo, explain, tune, audit, certify, export):
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")
    demo_command.add_arguments(demo)

    explain.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    explain.add_argument("--batch", type=count, default=1, metavar="N", help="batch size (default 1)")
    choice(explain, "--backend", ("auto", *selection.backends()), "NAME", "of the convolutions", default="auto")
    explain_command.add_arguments(explain)
    slopes.add_arguments(explain)
    add_options(explain, (224, 224), 3)

    tune.add_argument("model", metavar="MODEL", help=f"{MODEL}, or a .json file of layers")
    tune.add_argument("--batch", type=counts, metavar="N,N", help="batch sizes (default 1, or those in the file)")
    tune_command.add_arguments(tune)
    add_options(tune, None, None)

    audit.add_argument("model", metavar="RATES|MODEL", help=f"rates such as 1,2,5; or {MODEL}")
    audit_command.add_arguments(audit)
    add_options(audit, None, None)

    names = "these backends alone (default all that can run here)"
    certify.add_argument("--backend", type=_backends, default=(), metavar="NAME,NAME", help=names)
    certify_command.add_arguments(certify)

    export.add_argument("model", metavar="MODEL", help=MODEL)
    export.add_argument("--batch", type=count, metavar="N", help="a fixed batch size (default any)")
    export_command.add_arguments(export)
    add_options(export, (224, 224), 3)
    return parser


def _command(commands, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


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
        result = explain_command.run(args, load(args))
    _write_json(args.json, result)
    return 0


def _tune(args) -> int:
    from .tune import command as tune_command

    return tune_command.run(args, load, lambda result: _write_json(args.json, result))


def _audit(args) -> int:
    from .audit import command as audit_command

    audit = audit_command.run(args, load)
    if args.json:
        _write_json(args.json, {"audited": args.model, **audit.as_dict()})
    return audit_command.status(args, audit)


def _certify(args) -> int:
    from .certify import command as certify_command

    result = certify_command.run(args)
    _write_json(args.json, result)
    return int(not result["passed"])


def _export(args) -> int:
    from .export import command as export_command

    _write_json(args.json, export_command.run(args, load(args)))
    return 0


def _backends(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in selection.backends():
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(selection.backends())}, got {name!r}")
    return names


def _write_json(path: Path | None, result: dict) -> None:
    if path is None:
        return
    text = re.sub(NUMBERS, lambda numbers: f"[{' '.join(numbers[1].split())}]", json.dumps(result, indent=2)) + "\n"
    save("--json", path, text)
