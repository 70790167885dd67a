"""Fits the cost model of the Triton convolution to measured configs: `python -m bench.gpu.fit_cost_model tune.json`.

The file is what `python -m atrous tune ... --json tune.json` writes: the time of every config that was measured.
Printed are the rates that explain the times best, beside those of gpus.def; how well both rank the configs of a layer
(Spearman's correlation); and what the first choice of each costs over the fastest config. Nothing is written: who
believes the result edits gpus.def and names the file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch

from atrous.triton_kernels.conv import configs
from atrous.triton_kernels.conv.configs import ConvKey
from atrous.triton_kernels.conv.cost_model import Rates, Work, clocks, rates

CONFIGS = {
    config.describe(): config
    for tile, splits, waves in itertools.product(configs.CONV, configs.SPLITS, configs.WAVES)
    for config in [tile._replace(splits=splits, waves=waves)]
}
ELEMENT_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}


class Measured(NamedTuple):
    """One config of one layer."""

    layer: ConvKey
    work: Work
    microseconds: float


def entries(value: Any) -> Iterator[dict]:
    """Every object in a JSON value that has a layer's key and the milliseconds of its candidates."""
    if isinstance(value, dict):
        if isinstance(value.get("key"), dict) and isinstance(value.get("milliseconds"), dict):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from entries(part)


def conv_key(key: dict, chip: int, multiprocessors: int) -> ConvKey:
    """A layer's key in a tuning table as the config's rule sees it."""
    sides = zip(key["size"], key["kernel"], key["stride"], key["padding"], key["dilation"])
    out_size = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
    return ConvKey(
        chip, multiprocessors, ELEMENT_SIZES[key["dtype"]], "tf32" if key["tf32"] else "ieee",
        "last" if key["layout"] == "channels_last" else "planes", key["batch"], key["in_channels"], tuple(key["size"]),
        key["out_channels"], out_size, tuple(key["kernel"]), tuple(key["stride"]), key["groups"],
    )  # fmt: skip


def read(value: Any, chip: int, multiprocessors: int) -> list[Measured]:
    """The measured configs of matrix products on tensor cores; the model says nothing else."""
    found = []
    for entry in entries(value):
        if entry["key"]["dtype"] not in ELEMENT_SIZES:
            continue
        layer = conv_key(entry["key"], chip, multiprocessors)
        if layer.element_size == 2:
            layer = layer._replace(precision="tf32")
        if layer.depthwise or layer.precision == "ieee":
            continue
        for name, milliseconds in entry["milliseconds"].items():
            if config := CONFIGS.get(name.removeprefix("triton ")):
                found.append(Measured(layer, configs.conv_work(layer, config), 1e3 * milliseconds))
    return found


def residuals(found: list[Measured], model: Rates, mhz: float) -> torch.Tensor:
    """log(predicted / measured) of each."""
    logs = [math.log(clocks(m.work, model) / mhz / m.microseconds) for m in found]
    return torch.tensor(logs, dtype=torch.float64)


def error(found: list[Measured], model: Rates, mhz: float) -> float:
    """Their root mean square."""
    return float(residuals(found, model, mhz).square().mean().sqrt())


def scaled(model: Rates, logs: Iterable[float]) -> Rates:
    return Rates(*(rate * math.exp(log) for rate, log in zip(model, logs)))


def descend(found: list[Measured], model: Rates, mhz: float, turns: int = 25) -> Rates:
    """Levenberg and Marquardt's least squares over the logarithms of the rates, from one start."""
    damping, step = 1e-2, 1e-4
    here = residuals(found, model, mhz)
    for _ in range(turns):
        moves = torch.eye(len(model)).mul(step).tolist()
        slopes = torch.stack([residuals(found, scaled(model, move), mhz) - here for move in moves], dim=1) / step
        normal = slopes.T @ slopes
        normal += damping * (normal.diag().mean() + 1e-9) * torch.eye(len(model), dtype=torch.float64)
        tried = scaled(model, torch.linalg.solve(normal, -slopes.T @ here).clamp(-0.7, 0.7).tolist())
        there = residuals(found, tried, mhz)
        better = float(there.square().sum()) < float(here.square().sum())
        damping = damping / 5 if better else damping * 5
        model, here = (tried, there) if better else (model, here)
    return model


def fit(found: list[Measured], model: Rates, mhz: float) -> Rates:
    """The rates of the least error, from starts below and above the given ones: what bounds one config hides what
    bounds the next, so that a descent may end in a local minimum."""
    starts = itertools.product((0.5, 1.0), (0.6, 1.0, 1.6), (0.6, 1.0, 1.6))
    ends = (descend(found, scaled(model, (*map(math.log, start), 0.0, 0.0)), mhz) for start in starts)
    return min(ends, key=lambda end: error(found, end, mhz))


def undetermined(found: list[Measured], model: Rates, mhz: float) -> list[str]:
    """The rates that could as well be twice as high: no measured config is bound by them."""
    least = error(found, model, mhz)
    doubled = {name: model._replace(**{name: 2 * getattr(model, name)}) for name in Rates._fields}
    return [name for name, other in doubled.items() if error(found, other, mhz) < 1.01 * least + 1e-4]


def ranks(values: list[float]) -> list[float]:
    """The place of each value in their order; equal ones share the mean of their places."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]


def spearman(a: list[float], b: list[float]) -> float:
    """The correlation of the ranks; 0 where all values of one side are equal."""
    a, b = ([rank - fmean(r) for rank in r] for r in (ranks(a), ranks(b)))
    size = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b)) / size if size else 0.0


def judge(found: list[Measured], model: Rates) -> tuple[float, float, float]:
    """Over the layers: the mean rank correlation, and the first choice's time over the fastest one's, median and
    worst."""
    layers: dict[ConvKey, list[Measured]] = {}
    for m in found:
        layers.setdefault(m.layer, []).append(m)
    correlations, losses = [], []
    for ms in layers.values():
        predicted, measured = [clocks(m.work, model) for m in ms], [m.microseconds for m in ms]
        if len(ms) > 1:
            correlations.append(spearman(predicted, measured))
            losses.append(measured[predicted.index(min(predicted))] / min(measured))
    if not correlations:
        raise SystemExit("fit_cost_model: expected a layer with two measured configs, got none")
    return fmean(correlations), median(losses), max(losses)


def report(found: list[Measured], chip: int, mhz: float) -> str:
    """The fitted rates of each element size beside the table's."""
    lines = []
    for size in sorted({m.layer.element_size for m in found}):
        some = [m for m in found if m.layer.element_size == size]
        table = rates(chip, size)
        fitted = fit(some, table, mhz)
        lines.append(f"{size}-byte operands, {len(some)} configs of {len({m.layer for m in some})} layers, {mhz:g} MHz")
        lines.append(
            f"{'':10}" + "".join(f"{name:>10}" for name in (*Rates._fields, "error", "rank", "first", "worst"))
        )
        for name, model in (("gpus.def", table), ("fitted", fitted)):
            numbers = (*model, error(some, model, mhz), *judge(some, model))
            lines.append(f"{name:10}" + "".join(f"{number:10.4g}" for number in numbers))
        if free := undetermined(some, fitted, mhz):
            lines.append(f"no measured config is bound by: {', '.join(free)}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="what `atrous tune --json` wrote")
    parser.add_argument("--chip", type=int, default=90, help="compute capability without its dot (default 90)")
    parser.add_argument("--multiprocessors", type=int, default=132, help="of the GPU (default 132, an H100 SXM)")
    parser.add_argument("--mhz", type=float, default=1755, help="clock of its multiprocessors then (default 1755)")
    asked = parser.parse_args(arguments)
    values = [json.loads(path.read_text()) for path in asked.files]
    found = [m for value in values for m in read(value, asked.chip, asked.multiprocessors)]
    if not found:
        raise SystemExit(
            f"fit_cost_model: expected measured configs of the Triton convolution, got none in {values!r:.80}"
        )
    print(report(found, asked.chip, asked.mhz))


if __name__ == "__main__":
    main(sys.argv[1:])
