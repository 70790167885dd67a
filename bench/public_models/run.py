"""Measures the models of zoo.py, each in a process of its own, and writes bench/results/public-models-<date>.json.

    python -m bench.public_models.run [--json FILE] [--only TEXT] [--limit SECONDS]

A model that crashes, or takes more processor time than the limit, is a row that says so. The file is replaced
atomically after every model; a second run goes on with the models that it lacks, and measures those of --only again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import logging
import multiprocessing
import resource
import signal
import sys
import warnings
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import atrous
from atrous.tools import info
from bench import record
from bench.public_models import measure, page, verdict, zoo

IMPORTED = ("torchvision", "timm", "segmentation_models_pytorch", "monai.networks.nets", "ultralytics.nn.tasks",
            "transformers")  # fmt: skip
FORK = multiprocessing.get_context("fork")  # a process of its own for a model, with everything imported
PATIENCE = 20  # the time that a step may take on a loaded machine, in limits


def prepare() -> None:
    """Does what all models share once, before the first fork: imports, and those of the first compilation."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for library in IMPORTED:
        importlib.import_module(library)
    with torch.no_grad():
        atrous.fuse(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.ReLU()).eval())(torch.zeros(1, 1, 2, 2))


def work(name: str, results: Connection, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    torch.set_num_threads(1)  # renews torch's thread pool after the fork, which two threads at once would abort on
    for result in measure.measure(zoo.MODELS[name]):
        results.send(result)


def measured(name: str, limit: int, commit: str) -> measure.Row:
    """The row of a model: what it sent until it ended, crashed, or was killed."""
    results, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=work, args=(name, sender, limit), daemon=True)
    process.start()
    sender.close()
    row: dict[str, Any] = {"library": zoo.MODELS[name].library, "commit": commit}
    try:
        while results.poll(PATIENCE * limit):
            row |= results.recv()
        process.kill()
    except EOFError:
        pass
    process.join()
    ends = {0: {}, -signal.SIGXCPU: {"died": f"more than {limit} s of processor time"}}
    return {**row, **ends.get(process.exitcode, {"died": f"exit status {process.exitcode}"})}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = page.RESULTS / f"public-models-{datetime.date.today().isoformat()}.json"
    parser.add_argument("--json", type=Path, default=default, metavar="FILE")
    parser.add_argument("--only", metavar="TEXT", help="the models alone whose names contain it")
    parser.add_argument(
        "--limit", type=int, default=240, metavar="SECONDS", help="processor time of one model, 240 by default"
    )
    args = parser.parse_args(argv)
    known = record.read(args.json).get("models", {})
    names = [n for n in zoo.MODELS if (args.only in n if args.only is not None else n not in known)]
    if not names:
        print(f"--only: expected a part of a model's name, got {args.only!r}" if args.only else "every model is there")
        return int(bool(args.only))
    prepare()
    versions = info.versions() | {name: metadata.version(name) for name in {m.library for m in zoo.MODELS.values()}}
    about = record.about(info.processor(), versions)
    for name in names:
        known[name] = measured(name, args.limit, about["commit"])
        record.write(args.json, {**about, "models": known})
        print(verdict.line(name, known[name]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
