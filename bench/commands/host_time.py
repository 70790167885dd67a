"""Host time of what fuse() makes and of single calls, against plain torch. Exits 1 if a ratio is above its budget.

    python -m bench.commands.host_time [--json FILE] [--rounds N] [--row NAME]

The tensors are so small that the host limits the calls: 4 channels of 4x4 pixels, one thread. A graph is a chain of 36
layers, convolution -> BatchNorm -> + x -> PReLU; ResNet34 has as many, whose convolutions take most of the time of one
core. Their times are divided by 36. The peer of a graph is the model itself, that of a function or module the
composition of torch's functions. Ours and plain torch alternate; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atrous
from atrous.models import resnet34
from atrous.tools import timing
from bench import record

LAYERS, CHANNELS, SIZE = 36, 4, 4
CPU = torch.device("cpu")
Call = Callable[[], Any]


class Row(NamedTuple):
    """One comparison. budget: the largest ratio allowed. layers: what one call's time is divided by.

    calls: how many in a row, as a loop over batches makes them: the first after another model's finds the caches cold.
    """

    name: str
    ours: Call
    plain: Call
    budget: float
    layers: int = 1
    calls: int = 72


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.bn, self.act = nn.BatchNorm2d(CHANNELS), nn.PReLU(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)) + x)


def image(batch: int) -> Tensor:
    return torch.randn(batch, CHANNELS, SIZE, SIZE)


def inference(call: Call) -> Call:
    def run():
        with torch.no_grad():
            return call()

    return run


def step(call: Call, leaves: list[Tensor], grad: Tensor) -> Call:
    """A forward and a backward: the gradients of the leaves that the call uses."""
    return lambda: torch.autograd.grad(call(), leaves, grad, allow_unused=True)


def graphs(title: str, model: nn.Module, x: Tensor, budgets: tuple[float, float, float], calls: int) -> Iterator[Row]:
    """A whole model of 36 layers, compiled by fuse(): eval, frozen, and a training step of two images."""
    size = LAYERS, calls
    plain = inference(lambda: model(x))
    for name, options, budget in (("eval", {}, budgets[0]), ("frozen", {"freeze": True}, budgets[1])):
        fused = atrous.fuse(model, **options)
        yield Row(f"{title}, {name}", inference(lambda fused=fused: fused(x)), plain, budget, *size)
    model = copy.deepcopy(model).train()
    fused, batch = atrous.fuse(model), torch.cat([x, x + 1])
    grad = torch.randn_like(model(batch))
    ours, plain = (step(lambda run=run: run(batch), list(run.parameters()), grad) for run in (fused, model))
    yield Row(f"{title}, training step", ours, plain, budgets[2], *size)


def calls(training: bool) -> Iterator[Row]:
    """Each function, and each module: its peer is the same composition of functions."""
    block, batch = Layer().train(training), 2 if training else 1
    x, residual, weight, slope = image(batch), image(batch), block.conv.weight, block.act.weight
    norm = block.bn.running_mean, block.bn.running_var, block.bn.weight, block.bn.bias
    options: dict[str, Any] = {"slope": slope, "residual": residual, "training": training}
    layer, bn_act = atrous.nn.ConvBNAct2d(block.conv, block.bn, block.act), atrous.nn.BNAct2d(block.bn, block.act)
    add_act = atrous.nn.AddAct(block.act)

    def finish(z: Tensor) -> Tensor:
        return F.prelu(F.batch_norm(z, *norm, training) + residual, slope)

    def convolve() -> Tensor:
        return finish(F.conv2d(x, weight, None, 1, 1))

    def normalize() -> Tensor:
        return finish(x)

    def add() -> Tensor:
        return F.prelu(x + residual, slope)

    most = 1.7 if training else 1.5
    pairs = (
        ("conv_bn_act", lambda: atrous.conv_bn_act(x, weight, None, *norm, padding=1, **options), convolve, most),
        ("bn_act", lambda: atrous.bn_act(x, *norm, **options), normalize, most),
        ("add_act", lambda: atrous.add_act(x, residual, slope=slope), add, 2.0),
        ("ConvBNAct2d", lambda: layer(x, residual), convolve, most),
        ("BNAct2d", lambda: bn_act(x, residual), normalize, most),
        ("AddAct", lambda: add_act(x, residual), add, 2.0),
    )
    leaves, grad = [x.requires_grad_(training), residual.requires_grad_(training), *block.parameters()], image(batch)
    for name, ours, plain, budget in pairs:
        if training:
            yield Row(f"{name}, forward and backward", step(ours, leaves, grad), step(plain, leaves, grad), budget)
        else:
            yield Row(f"{name}, no gradients", inference(ours), inference(plain), budget)


def rows() -> Iterator[Row]:
    small = nn.Sequential(*[Layer() for _ in range(LAYERS)]).eval()
    yield from graphs("graph", small, image(1), (0.6, 0.5, 0.9), calls=10)
    network = resnet34(act="prelu").eval()
    yield from graphs("ResNet34 at 64x64", network, torch.randn(1, 3, 64, 64), (1.0, 1.0, 1.0), calls=2)
    yield from calls(training=False)
    yield from calls(training=True)


def compare(name: str) -> None:
    """Raises AssertionError unless both calls of each row give the same, in fp64: gradients pass 36 BatchNorms."""
    torch.set_default_dtype(torch.float64)
    try:
        for row in rows():
            if row.name.startswith(name):
                torch.testing.assert_close(row.ours(), row.plain(), rtol=1e-6, atol=1e-8)
    finally:
        torch.set_default_dtype(torch.float32)


def measured(row: Row, rounds: int) -> dict[str, Any]:
    """Microseconds of ours and of plain torch, their ratio and its budget. What is timed is compared, in fp32."""
    torch.testing.assert_close(row.ours(), row.plain(), rtol=1e-2, atol=5e-3)  # gradients closely, by compare()
    pair = {"ours": row.ours, "plain": row.plain}
    times = timing.interleaved(pair, CPU, 0.0, least=rounds, most=rounds, warmup=3, calls=row.calls)
    ratio = statistics.median(ours / plain for ours, plain in zip(times["ours"], times["plain"]))
    us = {f"{name}_us": ms * 1e3 / row.layers for name, ms in timing.medians(times).items()}
    return {"row": row.name, **us, "ratio": ratio, "budget": row.budget}


def show(results: list[dict[str, Any]]) -> str:
    lines = [f"{'us of one layer or call':<36}{'plain':>9}{'atrous':>9}{'ratio':>8}{'budget':>8}"]
    for r in results:
        numbers = f"{r['plain_us']:>9.1f}{r['ours_us']:>9.1f}{r['ratio']:>7.2f}x{r['budget']:>7.1f}x"
        lines.append(f"{r['row']:<36}{numbers}" + (" over budget" if r["ratio"] > r["budget"] else ""))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=60, help="times that each pair is measured")
    parser.add_argument("--row", default="", metavar="NAME", help="measure the rows alone whose names begin so")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    compare(args.row)
    results = [measured(row, args.rounds) for row in rows() if row.name.startswith(args.row)]
    print(show(results))
    if args.json:
        record.write_rows(args.json, results)
    over = [r["row"] for r in results if r["ratio"] > r["budget"]]
    if over:
        print(f"over budget: {', '.join(over)}", file=sys.stderr)
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
