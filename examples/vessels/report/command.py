"""python -m examples.vessels report: evaluate runs, write their page, and check the ROC area of the first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from atrous.core import files

from .. import checkpoint
from ..config import RunError, count, number
from ..data import cut
from ..inference import Way
from ..metrics import published
from . import charts, check
from .compose import compose
from .gather import Gather, RunResult

PAGE, FIGURES = "index.html", "report.json"


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, or their checkpoints")
    page = f"folder for {PAGE}, its pictures and {FIGURES} (default out/report)"
    parser.add_argument("--output", type=Path, default=Path("out/report"), metavar="DIR", help=page)
    parser.add_argument("--pictures", type=count, default=3, metavar="N", help="test images to draw (default 3)")
    loss = "loss whose first epoch is shown (default: one that every run reaches)"
    parser.add_argument("--loss", type=number, metavar="N", help=loss)
    parser.add_argument("--resamples", type=count, default=1000, metavar="N", help="of the intervals (default 1000)")
    required = "exit with status 1 unless the first run's ROC area is at least N and above Frangi's, intervals apart"
    parser.add_argument("--require-area", type=_area, metavar="N", help=required)
    parser.add_argument("--patches", action="store_true", help="average overlapping patches instead of one pass")
    stride = f"pixels between two patches (default {cut.STRIDE})"
    parser.add_argument("--stride", type=count, default=cut.STRIDE, metavar="N", help=stride)
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if any)")


def report(args: argparse.Namespace) -> int:
    """Writes the page and returns the exit status: 1 if --require-area is not met."""
    charts.check()
    gather = Gather(_way(args), args.device, args.resamples)
    runs = gather.runs(args.runs)
    filtered = [gather.baseline(run) for run in runs]
    different = list({id(figures): figures for figures in filtered}.values())
    args.output.mkdir(parents=True, exist_ok=True)
    text = compose(args.output, runs, different, published.load(), gather.way, args.pictures, args.loss)
    checkpoint.write_json(args.output / FIGURES, _figures(runs, filtered, gather.way))
    path = args.output / PAGE
    files.write(path, text)
    print(f"written: {path}", flush=True)
    return _status(args, runs[0], filtered[0])


def _status(args: argparse.Namespace, run: RunResult, baseline: dict) -> int:
    if args.require_area is None:
        return 0
    problems = check.problems(run.name, run.figures, baseline, args.require_area)
    for problem in problems:
        print(f"vessels report: --require-area: {problem}", file=sys.stderr)
    if not problems:
        model, filtered = (f"{check.roc(f)['value']:.4f}" for f in (run.figures, baseline))
        print(f"--require-area {args.require_area:g}: met by {run.name}, {model}; Frangi's filter has {filtered}")
    return int(bool(problems))


def _way(args: argparse.Namespace) -> Way:
    sides = {checkpoint.load(path).config.patch for path in args.runs} if args.patches else set()
    if len(sides) > 1:
        raise RunError(f"--patches: expected runs of one patch side, got {', '.join(map(str, sorted(sides)))}")
    for side in sides:
        if args.stride > side:
            raise RunError(f"--stride: expected at most the patch's side, {side}, got {args.stride}")
        return Way(side, args.stride)
    return Way()


def _figures(runs: Sequence[RunResult], baselines: Sequence[dict], way: Way) -> dict:
    parts = [
        {
            "name": run.name, "options": run.config.as_dict(), "epochs": run.saved_run.epochs,
            "best_epoch": run.saved_run.best_epoch, "synthetic": run.synthetic, "figures": run.figures,
            "frangi": baseline,
            "layers": [asdict(layer) for layer in run.layers], "saved_bytes": run.saved,
        }
        for run, baseline in zip(runs, baselines)
    ]  # fmt: skip
    return {"inference": str(way), "runs": parts}


def _area(text: str) -> float:
    value = number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected an area from 0 to 1, got {text!r}")
    return value
