"""python -m atrous demo: an ordinary ResNet34 and its fused copy side by side, on photographs.

Their outputs are first compared with an fp64 run of the plain model; then they are timed in one interleaved run.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...core.checks import UsageError
from ...core.files import save, writable
from .. import info
from ..model_argument import positive
from . import plot
from . import report as demo_report
from .images import photographs, shipped, subject
from .run import Disagreement, Plan, Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of demo except --json, which every command has."""
    images = "photographs (default: four that ship with scikit-learn and scikit-image)"
    seconds = "time budget: beyond it some torch.compile variants are left out (default %(default)g)"
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the table (PNG)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint of ResNet34 (default: random)")
    parser.add_argument("--image", type=Path, nargs="+", metavar="FILE", help=images)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, metavar="N", help=seconds)


def main(args: argparse.Namespace, plan: Plan | None = None) -> int:
    """Returns 0, or 1 if the fused model disagrees with the plain one. Raises UsageError for an unusable input."""
    positive("--seconds", args.seconds)
    plan = plan or Plan(seconds=args.seconds)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install matplotlib")
    writable("--plot", args.plot)
    paths = args.image or shipped()
    images = photographs(paths, plan.size)
    model, weights = subject(args.weights, images)
    result = _new_result(device, plan, paths, weights)
    print(demo_report.header(result), flush=True)
    try:
        # One model is compiled for each cell. torch's annotations lack config.patch.
        with torch.no_grad(), torch.compiler.config.patch(recompile_limit=64):  # type: ignore[attr-defined]
            _show(Run(model, images, device, plan, result))
    except Disagreement as error:
        print(f"atrous demo: the fused model disagrees with the plain one, nothing is timed: {error}", file=sys.stderr)
        return 1
    finally:
        if args.json:
            save("--json", args.json, json.dumps(result, indent=2) + "\n")
    if args.plot:
        save("--plot", args.plot, plot.draw(result))
    return 0


def _show(run: Run) -> None:
    """Runs the demo, and prints each part of the report as soon as it is complete."""
    with _progress(run):
        try:
            run.agreement()
        finally:
            _print(demo_report.agreement(run.result))
        run.count()
        _print(demo_report.fusion(run.result))
        run.prepare()
        run.measure()
        _print(demo_report.times(run.result))
        run.train()
    print(demo_report.training(run.result), flush=True)


@contextlib.contextmanager
def _progress(run: Run) -> Iterator[None]:
    """Shows a progress bar on stderr, if stderr is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield
        return
    with tqdm(total=run.steps(), disable=None, leave=False, bar_format="{percentage:3.0f}% |{bar:20}| {desc}") as bar:

        def advance(text: str, steps: float) -> None:
            bar.set_description_str(text, refresh=False)
            bar.update(steps)

        run.progress = advance
        yield


def _print(text: str) -> None:
    """Prints above the progress bar, if there is one."""
    try:
        from tqdm import tqdm
    except ImportError:
        print(text, flush=True)
    else:
        tqdm.write(text)
        sys.stdout.flush()


def _new_result(device: torch.device, plan: Plan, paths: list[Path], weights: str) -> dict[str, Any]:
    host = info.machine()
    processor = {"name": host["cpu"], "capability": host["capability"], "threads": host["threads"]}
    hardware = host["devices"][torch.cuda.current_device()] if device.type == "cuda" else processor
    return {
        "device": {"type": device.type, **hardware},
        "versions": info.versions(),
        "date": datetime.date.today().isoformat(),
        "model": {
            "name": "resnet34",
            "size": plan.size,
            "weights": weights,
            "images": [Path(path).name for path in paths],
        },
        "agreement": {},
        "launches": {},
        "fusion": {},
        "inference": [],
        "training": [],
        "training_not_run": [],
        "memory": [],
        "agreement_of_gradients": {},
        "not_run": [],
    }
