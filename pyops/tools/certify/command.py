"""python -m atrous certify: measure the errors, print a table, and exit with status 1 if one is over its budget."""

from __future__ import annotations

import argparse
import textwrap
import warnings
from collections.abc import Sequence

import torch

from ...backends import selection
from .. import info
from ..text_table import align
from . import errors

HEADS = ("operator", "dtype", "backend", "cases", "error", "plain", "budget")
LEGEND = (
    "error, plain: root mean square against fp64, of atrous and of plain torch, in the case that comes nearest to its "
    "budget, and how much of it that is: 1.25 times the error of plain torch, or a few roundings."
)
WIDTH = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random values (default 0)")


def run(args: argparse.Namespace) -> dict:
    """Prints the table; returns the result for JSON."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same'")  # torch's, for an even kernel
        results = list(errors.measurements(args.backend or tuple(selection.backends()), device, args.seed))
    print(render(results))
    listed = [result._asdict() | {"passed": result.passed} for result in results]
    machine = {"device": device, "versions": info.versions(), "machine": info.machine()}
    return {**machine, "seed": args.seed, "passed": all(result.passed for result in results), "results": listed}


def render(results: Sequence[errors.Measurement]) -> str:
    measured = [result for result in results if result.cases]
    lines = align([HEADS, *map(_cells, measured)], left=(0, 1, 2), gap=" ") if measured else ["no backend can run here"]
    ran = {result.backend for result in measured}
    refused = {result.backend: result.refused for result in reversed(results) if result.backend not in ran}
    for backend, reason in refused.items():
        lines += textwrap.wrap(f"not here: {backend}: {reason}", WIDTH, subsequent_indent="  ")
    over = [
        f"over its budget: {one.operator} {one.dtype} {one.backend}, {one.case}" for one in measured if not one.passed
    ]
    passed = f"{len(measured)} of {len(measured)} are within their budgets" if measured else ""
    return "\n".join([*lines, *textwrap.wrap(LEGEND, WIDTH), *(over or [passed])])


def _cells(one: errors.Measurement) -> tuple[str, ...]:
    assert one.error is not None and one.plain is not None and one.budget_used is not None
    numbers = f"{one.error:.1e}", f"{one.plain:.1e}", f"{one.budget_used:.0%}"
    return one.operator, one.dtype, one.backend, str(one.cases), *numbers
