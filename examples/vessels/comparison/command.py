"""python -m examples.vessels compare: train the arms, run by run, and write their results and table."""

from __future__ import annotations

import argparse
from pathlib import Path

from atrous.core import files

from .. import checkpoint
from ..config import Config, RunError, count, number
from ..report import charts
from . import pictures, statistics, table
from .arms import ARMS, FIXED, REFERENCE, Arm
from .runs import Runs

RESULTS, TABLE = "results.json", "table.md"
DIFFERENCES, DETAILS = "differences.png", "rates.png"
FILES = (RESULTS, TABLE, DIFFERENCES, DETAILS)
QUICK = {"steps": 100, "epochs": 12, "stride": 24}
FULL = {"steps": 1000, "epochs": 50, "stride": 5}
TAKEN = ("data", "partial", "images", "validation", "width", "batch", "patch", "lr", "device")  # options of Config


def add_compare(parser: argparse.ArgumentParser) -> None:
    text = f"folder for the runs, {', '.join(FILES)}; what is finished there is not run again (default out/compare)"
    parser.add_argument("--output", default="out/compare", metavar="DIR", help=text)
    parser.add_argument("--seeds", type=count, default=3, metavar="N", help="runs of each arm (default 3)")
    for name, about in (
        ("steps", "steps of an epoch"), ("epochs", "epochs"), ("stride", "pixels between two test patches")
    ):  # fmt: skip
        values = f"{about} (default {QUICK[name]}, with --full {FULL[name]})"
        parser.add_argument(f"--{name}", type=count, metavar="N", help=values)
    parser.add_argument("--full", action="store_true", help="longer runs and patches 5 pixels apart: for a GPU")
    names = f"arms beside {REFERENCE.name}: {'; '.join(arm.name for arm in ARMS[1:])} (default all)"
    parser.add_argument("--only", nargs="+", metavar="ARM", help=names)
    parser.add_argument("--data", metavar="DIR", help="data folder (default: synthetic images)")
    parser.add_argument("--partial", action="store_true", help="take what is there of a published data set")
    images = "at most so many training images, validation ones among them"
    parser.add_argument("--images", type=count, metavar="N", help=images)
    for name in ("validation", "width", "batch", "patch"):
        _as_in_train(parser, name, count)
    _as_in_train(parser, "lr", number)
    _as_in_train(parser, "device", str)


def _as_in_train(parser: argparse.ArgumentParser, name: str, parse) -> None:
    field = Config.__dataclass_fields__[name]
    text = f"{field.metadata['help']} (default {field.default})"
    parser.add_argument(f"--{name}", type=parse, default=field.default, metavar=name.upper(), help=text)


def compare(args: argparse.Namespace) -> None:
    """Runs what has no result yet, then writes results, table and pictures, and prints the table."""
    charts.check()
    runs = _runs(args)
    if runs.stride > runs.base.patch:
        raise RunError(f"--stride: expected at most the patch's side, {runs.base.patch}, got {runs.stride}")
    aside = runs.refused()
    if REFERENCE.name in aside:
        raise RunError(f"the reference is refused: {aside[REFERENCE.name]}")
    for name, reason in aside.items():
        print(f"{name}: refused: {reason}", flush=True)
    results = runs.all(lambda line: print(line, flush=True))
    finished = {name: runs_ for name, runs_ in results.items() if not any("stopped" in run for run in runs_)}
    aside |= {name: _stopped(results[name]) for name in results if name not in finished}
    if REFERENCE.name not in finished:
        raise RunError(f"the reference did not finish: {aside[REFERENCE.name]}")
    values = {
        name: {metric: [run[metric] for run in runs_] for metric in statistics.METRICS}
        for name, runs_ in finished.items()
    }
    compared = statistics.compare(values, REFERENCE.name)
    _write(runs, results, compared, table.spread(values[REFERENCE.name]), aside)


def _runs(args: argparse.Namespace) -> Runs:
    defaults = FULL if args.full else QUICK
    chosen = {name: getattr(args, name) or default for name, default in defaults.items()}
    stride = chosen.pop("stride")
    base = Config(output=args.output, **chosen, **FIXED, **{name: getattr(args, name) for name in TAKEN})
    return Runs(base, _arms(args.only), range(args.seeds), stride)


def _arms(only: list[str] | None) -> list[Arm]:
    names = [arm.name for arm in ARMS]
    if unknown := [name for name in only or () if name not in names]:
        raise RunError(f"--only: expected arms among {'; '.join(names)}, got {'; '.join(unknown)}")
    return [arm for arm in ARMS if only is None or arm.name in only or arm is REFERENCE]


def _stopped(runs: list[dict]) -> str:
    stopped = [(run["options"]["seed"], run["stopped"]) for run in runs if "stopped" in run]
    return "; ".join(f"seed {seed}: {reason}" for seed, reason in stopped)


def _write(runs: Runs, results: dict, compared: dict, spread: str, aside: dict) -> None:
    samples = {
        "training": runs.data.train.samples, "validation": runs.data.validation.samples, "test": runs.test.samples
    }  # fmt: skip
    text = f"{table.caption(runs.base, samples, runs.seeds, runs.stride)}\n{spread}"
    others = [arm for arm in runs.arms if arm.name in compared and arm is not REFERENCE]
    sentences = [table.sentence(arm, compared[arm.name]) for arm in others]
    page = table.markdown(text, table.table(runs.arms, compared), sentences, aside)
    folder = Path(runs.base.output)
    value = {
        "caption": text.splitlines(), "reference": REFERENCE.name, "options": runs.base.as_dict(),
        "seeds": list(runs.seeds), "stride": runs.stride, "arms": compared, "sentences": sentences,
        "not_in_table": aside, "runs": results,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(folder / RESULTS, value)
    files.write(folder / TABLE, page)
    print(page, flush=True)
    _draw(runs, compared, folder)
    print(f"written: {', '.join(str(folder / name) for name in FILES)}", flush=True)


def _draw(runs: Runs, compared: dict, folder: Path) -> None:
    """Draws the differences, and the first test image by the arms that differ in their rates."""
    synthetic = any(sample.synthetic for sample in runs.test.samples)
    pictures.differences(folder / DIFFERENCES, runs.arms, compared, synthetic)
    dilated = [arm for arm in runs.arms if arm.name in compared and (arm is REFERENCE or "rates" in arm.changes)]
    names = [f"rates {','.join(map(str, runs.config(arm, 0).rates))}" for arm in dilated]
    pictures.details(folder / DETAILS, dict(zip(names, map(runs.first_image, dilated))), synthetic)
