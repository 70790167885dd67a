"""Fit the cost model of the Triton convolution to measured configs: `python -m bench.gpu.fit_cost_model tune.json`.

The file is the output of `python -m atrous tune ... --json tune.json`, which has the time of every measured config.
Printed are the rates with the least error, next to those of gpus.def; how well both rank the configs of a layer
(Spearman's correlation); and the time of each one's first choice over the fastest config. Nothing is written: to use
the result, edit gpus.def and cite the file there.
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

from atrous.core.spec import Spec
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
    """The measured time of one config on one layer."""

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
    """Converts a layer's key in a tuning table to the key that the config heuristic takes."""
    spec = Spec.of(key["stride"], key["padding"], key["dilation"], key["groups"])
    out_size = spec.output_size(key["size"], key["kernel"])
    return ConvKey(
        chip, multiprocessors, ELEMENT_SIZES[key["dtype"]], "tf32" if key["tf32"] else "ieee",
        "nhwc" if key["layout"] == "channels_last" else "nchw", key["batch"], key["in_channels"], tuple(key["size"]),
        key["out_channels"], out_size, tuple(key["kernel"]), spec.stride, spec.groups,
    )  # fmt: skip


def read(value: Any, chip: int, multiprocessors: int) -> list[Measured]:
    """The measured configs that run on tensor cores; the model covers no others."""
    measured = []
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
                measured.append(Measured(layer, configs.conv_work(layer, config), 1e3 * milliseconds))
    return measured


def residuals(measured: list[Measured], model: Rates, mhz: float) -> torch.Tensor:
    """log(predicted / measured) of each config."""
    logs = [math.log(clocks(m.work, model) / mhz / m.microseconds) for m in measured]
    return torch.tensor(logs, dtype=torch.float64)


def error(measured: list[Measured], model: Rates, mhz: float) -> float:
    """Root mean square of the residuals."""
    return float(residuals(measured, model, mhz).square().mean().sqrt())


def scaled(model: Rates, logs: Iterable[float]) -> Rates:
    return Rates(*(rate * math.exp(log) for rate, log in zip(model, logs)))


def descend(measured: list[Measured], model: Rates, mhz: float, turns: int = 25) -> Rates:
    """Least squares over the logarithms of the rates by the Levenberg-Marquardt method, from one start."""
    damping, step = 1e-2, 1e-4
    here = residuals(measured, model, mhz)
    for _ in range(turns):
        moves = torch.eye(len(model)).mul(step).tolist()
        slopes = torch.stack([residuals(measured, scaled(model, move), mhz) - here for move in moves], dim=1) / step
        normal = slopes.T @ slopes
        normal += damping * (normal.diag().mean() + 1e-9) * torch.eye(len(model), dtype=torch.float64)
        tried = scaled(model, torch.linalg.solve(normal, -slopes.T @ here).clamp(-0.7, 0.7).tolist())
        there = residuals(measured, tried, mhz)
        better = float(there.square().sum()) < float(here.square().sum())
        damping = damping / 5 if better else damping * 5
        model, here = (tried, there) if better else (model, here)
    return model


def fit(measured: list[Measured], model: Rates, mhz: float) -> Rates:
    """The rates with the least error, from several starts: a config depends only on the rate that bounds it, so that a
    single descent may end in a local minimum."""
    starts = itertools.product((0.5, 1.0), (0.6, 1.0, 1.6), (0.6, 1.0, 1.6))
    ends = (descend(measured, scaled(model, (*map(math.log, start), 0.0, 0.0)), mhz) for start in starts)
    return min(ends, key=lambda end: error(measured, end, mhz))


def undetermined(measured: list[Measured], model: Rates, mhz: float) -> list[str]:
    """The rates whose doubling does not raise the error: no measured config is bound by them."""
    least = error(measured, model, mhz)
    doubled = {name: model._replace(**{name: 2 * getattr(model, name)}) for name in Rates._fields}
    return [name for name, other in doubled.items() if error(measured, other, mhz) < 1.01 * least + 1e-4]


def ranks(values: list[float]) -> list[float]:
    """The rank of each value; equal values get the mean of their ranks."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]


def spearman(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation; 0 if all values of one side are equal."""
    a, b = ([rank - fmean(r) for rank in r] for r in (ranks(a), ranks(b)))
    size = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b)) / size if size else 0.0


def evaluate(measured: list[Measured], model: Rates) -> tuple[float, float, float]:
    """Mean rank correlation over the layers, then median and maximum of the first choice's time over the fastest."""
    layers: dict[ConvKey, list[Measured]] = {}
    for m in measured:
        layers.setdefault(m.layer, []).append(m)
    correlations, losses = [], []
    for ms in layers.values():
        predicted, times = [clocks(m.work, model) for m in ms], [m.microseconds for m in ms]
        if len(ms) > 1:
            correlations.append(spearman(predicted, times))
            losses.append(times[predicted.index(min(predicted))] / min(times))
    if not correlations:
        raise SystemExit("fit_cost_model: expected a layer with two measured configs, got none")
    return fmean(correlations), median(losses), max(losses)


def report(measured: list[Measured], chip: int, mhz: float) -> str:
    """The fitted rates of each element size next to those of gpus.def, as text."""
    lines = []
    for size in sorted({m.layer.element_size for m in measured}):
        some = [m for m in measured if m.layer.element_size == size]
        table = rates(chip, size)
        fitted = fit(some, table, mhz)
        lines.append(f"{size}-byte operands, {len(some)} configs of {len({m.layer for m in some})} layers, {mhz:g} MHz")
        lines.append(
            f"{'':10}" + "".join(f"{name:>10}" for name in (*Rates._fields, "error", "rank", "first", "worst"))
        )
        for name, model in (("gpus.def", table), ("fitted", fitted)):
            numbers = (*model, error(some, model, mhz), *evaluate(some, model))
            lines.append(f"{name:10}" + "".join(f"{number:10.4g}" for number in numbers))
        if free := undetermined(some, fitted, mhz):
            lines.append(f"no measured config is bound by: {', '.join(free)}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="output of `atrous tune --json`")
    parser.add_argument("--chip", type=int, default=90, help="compute capability without its dot (default 90)")
    parser.add_argument("--multiprocessors", type=int, default=132, help="number on the GPU (default 132, an H100 SXM)")
    parser.add_argument("--mhz", type=float, default=1755, help="clock during the measurement (default 1755)")
    args = parser.parse_args(arguments)
    values = [json.loads(path.read_text()) for path in args.files]
    measured = [m for value in values for m in read(value, args.chip, args.multiprocessors)]
    if not measured:
        raise SystemExit(
            f"fit_cost_model: expected measured configs of the Triton convolution, got none in {values!r:.80}"
        )
    print(report(measured, args.chip, args.mhz))


if __name__ == "__main__":
    main(sys.argv[1:])
