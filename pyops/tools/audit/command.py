"""python -m atrous audit: the pixels that a stack of rates or a model reads, as text, pictures and JSON."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ...audit import Audit, audit_dilation
from ...core.checks import UsageError
from ...core.files import save, writable
from ..model_argument import OPTIONS
from . import pictures, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only audit has."""
    parser.add_argument("--kernel-sizes", metavar="K[,K]", help="of the rates: one, or one for each (default 3)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the field, and the suggestion's (PNG)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write one page with all of it")
    parser.add_argument("--image", type=Path, metavar="FILE", help="an image to draw the field on, in --plot or --html")
    required = "exit with status 1 if less than this fraction of the field is read (1.0: no holes)"
    parser.add_argument("--require-coverage", type=_fraction, metavar="N", help=required)


def run(args: argparse.Namespace, model_of: Callable[[argparse.Namespace], nn.Module]) -> Audit:
    """Prints the audit, and writes its pictures."""
    _check(args)
    image = pictures.read(args.image) if args.image else None
    title, audit, suggested = _audits(args, model_of)
    print(report.render(title, audit, suggested, shutil.get_terminal_size().columns, _blocks()))
    if args.plot or args.html:
        from . import page

        figure = pictures.draw(title, audit, suggested, image and pictures.fitted(image, audit))
        if args.plot:
            save("--plot", args.plot, figure)
        if args.html:
            save("--html", args.html, page.page(title, audit, suggested, figure))
    return audit


def status(args: argparse.Namespace, audit: Audit) -> int:
    """1 if --require-coverage is not met, and says so on stderr."""
    wanted = args.require_coverage
    if wanted is None or audit.coverage >= wanted:
        return 0
    print(f"atrous audit: --require-coverage: expected {wanted:g}, got {audit.coverage:.4g}", file=sys.stderr)
    return 1


def _audits(args: argparse.Namespace, model_of: Callable) -> tuple[str, Audit, list[Audit]]:
    """A title, the audit, and the audits of what it suggests."""
    try:
        if _is_rates(args.model):
            kernels = _numbers("--kernel-sizes", args.kernel_sizes or "3")
            kernel_sizes = kernels[0] if len(kernels) == 1 else kernels
            rates = _numbers("RATES", args.model)
            audit, title = audit_dilation(rates, args.size, kernel_sizes), f"rates {', '.join(map(str, rates))}"
        else:
            model = model_of(args)
            audit = audit_dilation(model, _input_size(args))
            assert audit.input_size is not None
            title = f"{args.model}{_options(args)}, input {'x'.join(map(str, audit.input_size))}"
        stacks = audit.suggestion.stacks if audit.suggestion else []
        return title, audit, [audit_dilation(stack.rates, args.size, stack.kernel_sizes) for stack in stacks]
    except (TypeError, ValueError) as error:
        names = {
            "model_or_rates": "RATES",
            "kernel_sizes": "--kernel-sizes",
            "input_size": "--size",
            "model": args.model,
        }
        argument, _, rest = str(error).partition(": ")
        raise UsageError(f"{names.get(argument, argument)}: {rest}") from error


def _is_rates(text: str) -> bool:
    """True for numbers, right or wrong, and not for a model's name, without a comma and a digit first."""
    return "," in text or re.match(r"\s*[-+.\d]", text) is not None


def _options(args: argparse.Namespace) -> str:
    """The options of the model, as they were given."""
    given = [(name.replace("_", "-"), getattr(args, name)) for name in OPTIONS if getattr(args, name) is not None]
    values = [(name, ",".join(map(str, value)) if isinstance(value, tuple) else value) for name, value in given]
    return "".join(f" --{name} {value}" for name, value in values)


def _input_size(args: argparse.Namespace) -> tuple[int, ...] | None:
    size = args.size or (224, 224)
    return (args.channels, *size) if args.channels else args.size


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("0*[1-9][0-9]{,8}", part) for part in parts):
        raise UsageError(f"{option}: expected positive integers, as in 1,2,5, got {text!r}")
    return tuple(map(int, parts))


def _check(args: argparse.Namespace) -> None:
    rates = _is_rates(args.model)
    unused = [
        name for name in (("channels", *OPTIONS) if rates else ("kernel_sizes",)) if getattr(args, name) is not None
    ]
    if unused:
        kind = "a model" if rates else "rates"
        raise UsageError(f"--{unused[0].replace('_', '-')} is for {kind}, not for {args.model}")
    if args.image and not (args.plot or args.html):
        raise UsageError("--image: expected --plot or --html, where it is drawn, got neither")
    if (args.plot or args.html) and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot and --html need matplotlib: pip install matplotlib")
    for option, path in (("--plot", args.plot), ("--html", args.html)):
        writable(option, path)


def _fraction(text: str) -> float:
    try:
        value = float(text)
        if not 0 <= value <= 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}") from None
    return value


def _blocks() -> str:
    """Five shades, from nothing to full: of ASCII where the terminal's encoding lacks the block characters."""
    blocks = " ░▒▓█"
    try:
        blocks.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return " .:*#"
    return blocks
