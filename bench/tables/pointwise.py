"""Measure the pointwise and reduction kernels, in Triton and in C++, against a copy of as many bytes.

    python -m bench.tables.pointwise RESULTS_DIR [--seconds S] [--continue]

Forward and backward over the feature maps of ResNet34's stages in both layouts. Each variant, and the copy, is one CUDA
graph over sets of tensors that together exceed the L2 cache. The copy has the size of the pass: an output of 12 MB fits
into the cache, one of a gigabyte does not. Every result is compared with plain torch in fp64 before it is timed.
Written to tables.pointwise in RESULTS_DIR/<gpu>-<date>.json after each row. Exit status 1: a result was wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atrous import testing
from atrous.core.spec import Epilogue
from atrous.ops import device_support, eager, triton_impl
from atrous.tools.timing import copies
from bench.tables import fused_goals
from bench.tables import table as tables
from bench.tables.fused_layers import timed
from bench.tables.measures import NHWC, dtype_name

SECONDS = {"passes": 40.0}
FRACTION = 0.85  # required fraction of the copy's bandwidth
MAPS = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, height and width
LAYOUTS = {"channels_last": NHWC, "NCHW": torch.contiguous_format}
Inputs = dict[str, Any]


class Pass(NamedTuple):
    """A primitive: the feature maps it reads, the number it writes, and a function from tensors to its name and
    arguments."""

    reads: tuple[str, ...]
    writes: int
    call: Callable[[Inputs], tuple]

    @property
    def maps(self) -> int:
        return len(self.reads) + self.writes


def inputs(
    one: Pass, channels: int, side: int, batch: int, dtype: torch.dtype, layout: str, device: torch.device
) -> Inputs:
    """The feature maps that the pass reads, its per-channel vectors, and "half": a tensor of half the bytes that the
    pass moves, so that a copy of it moves as many."""
    size = (batch, channels, side, side)
    maps = {name: torch.randn(size, device=device).to(dtype, memory_format=LAYOUTS[layout]) for name in one.reads}
    mean, var, gamma, beta, slope = (torch.rand(channels, device=device) + 0.5 for _ in range(5))
    half = torch.zeros(-(-one.maps * maps["z"].numel() // 2), dtype=dtype, device=device)
    means = torch.rand(2, channels, device=device)
    return {**maps, "half": half, "means": means, "vectors": (mean, var, gamma, beta, slope)}


def epilogue(tensors: Inputs, residual: bool = False, bn: bool = True) -> Epilogue:
    *bn_vectors, slope = tensors["vectors"]
    added = tensors["residual"] if residual else None
    return Epilogue(*(bn_vectors if bn else [None] * 4), slope_kind="tensor", slope=slope, residual=added)


def forward(tensors: Inputs, residual: bool = False, bn: bool = True) -> tuple:
    return ("_epilogue", tensors["z"], *epilogue(tensors, residual, bn))


def backward(tensors: Inputs, residual: bool = False) -> tuple:
    maps = tensors["grad"], tensors["z"]
    return ("_epilogue_backward", *maps, tensors["means"], True, residual, *epilogue(tensors, residual))


PASSES = {
    "bn_act": Pass(("z",), 1, forward),
    "bn_act, residual": Pass(("z", "residual"), 1, lambda tensors: forward(tensors, True)),
    "add_act": Pass(("z", "residual"), 1, lambda tensors: forward(tensors, True, bn=False)),
    "statistics": Pass(("z",), 0, lambda tensors: ("_statistics", tensors["z"])),
    "sums of the backward": Pass(
        ("grad", "z"), 0, lambda tensors: ("_epilogue_reduce", tensors["grad"], tensors["z"], *epilogue(tensors))
    ),
    "backward": Pass(("grad", "z"), 1, backward),
    "backward, residual": Pass(("grad", "z", "residual"), 2, lambda tensors: backward(tensors, True)),
}


def backends(device: torch.device) -> dict[str, Any]:
    """The operator namespace of each backend that runs on the device."""
    namespaces = {}
    if device.type == "cuda" and triton_impl.triton_runs(device):
        namespaces["triton"] = torch.ops.atrous_triton
    if device.type == "cpu" or not device_support.native_reasons(device):
        namespaces["native"] = torch.ops.atrous
    return namespaces


def run(namespace: Any, call: tuple) -> Any:
    return getattr(namespace, call[0])(*call[1:])


def check(name: str, call: tuple, outputs: Any) -> None:
    """Raises AssertionError if a result differs from plain torch in fp64 by more than two roundings of the largest
    value; sums are allowed 2e-4 of it."""
    doubled = [value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in call]
    exact = run(eager, tuple(doubled))
    for one, truth in zip(*(values if isinstance(values, tuple) else (values,) for values in (outputs, exact))):
        if truth.numel() == 0:  # a gradient that was not requested
            continue
        relative = 2 * torch.finfo(one.dtype).eps if one.dim() == 4 else 2e-4
        try:
            testing.assert_tensor(one, truth.to(one.dtype), truth, relative=relative)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def measure(
    name: str, channels: int, side: int, layout: str, batch: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """One row of the table. Raises AssertionError before timing if a result is wrong."""
    one, namespaces = PASSES[name], backends(device)
    sets = copies(lambda: inputs(one, channels, side, batch, dtype, layout, device), device)
    for backend, namespace in namespaces.items():
        check(backend, one.call(sets[0]), run(namespace, one.call(sets[0])))
    calls = {key: lambda tensors, ops=ops: run(ops, one.call(tensors)) for key, ops in namespaces.items()}
    ms = timed({**calls, "copy": lambda tensors: tensors["half"].clone()}, sets, device)
    moved = one.maps * sets[0]["z"].nbytes
    return {
        "pass": name, "channels": channels, "size": side, "layout": layout, "batch": batch, "dtype": dtype_name(dtype),
        "maps": one.maps, "ms": ms, "gb_s": {variant: moved / value / 1e6 for variant, value in ms.items()},
        "of_copy": {backend: ms["copy"] / ms[backend] for backend in namespaces},
    }  # fmt: skip


def goals(result: tables.Result, expected: int) -> list[dict[str, str]]:
    """One goal per backend. expected: the number of rows of one dtype."""
    checked = []
    for backend in ("native", "triton"):
        values = {
            f"{row['pass']}, {row['channels']} channels, {row['layout']}": row["of_copy"][backend]
            for row in result["passes"] if row["dtype"] == fused_goals.DTYPE and backend in row["of_copy"]
        }  # fmt: skip
        text = f"passes of backend {backend}: at least {FRACTION:.0%} of the bandwidth of a copy of as many bytes"
        checked.append(fused_goals.at_least(text, values, expected, FRACTION, "{:.0%}".format, "passes"))
    return checked


def table(
    device: torch.device, result: tables.Result, save: Callable[[], None], batch: int = 256,
    maps: tuple[tuple[int, int], ...] = MAPS, dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32),
    seconds: dict[str, float] = SECONDS,
) -> None:  # fmt: skip
    def one(name: str, channels: int, side: int, layout: str, dtype: torch.dtype) -> dict[str, Any]:
        return measure(name, channels, side, layout, batch, dtype, device)

    jobs = [
        (one, name, channels, side, layout, dtype)
        for dtype in dtypes for channels, side in maps for layout in LAYOUTS for name in PASSES
    ]  # fmt: skip

    def checked() -> None:
        result["goals"] = goals(result, len(jobs) // len(dtypes))
        save()

    tables.fill(result, {"passes": jobs}, seconds, checked)


def show(result: tables.Result) -> str:
    """The table as text: milliseconds and bandwidth relative to the copy's, then the copy itself."""
    lines = [f"{result['device']}: milliseconds, and bandwidth relative to a copy of as many bytes"]
    for row in result["passes"]:
        pairs = row["of_copy"].items()
        columns = "  ".join(f"{name} {row['ms'][name]:>8.4f} {fraction:>4.0%}" for name, fraction in pairs)
        columns += f"  copy {row['ms']['copy']:>8.4f} ({row['gb_s']['copy']:.0f} GB/s)"
        size = f"{row['channels']}x{row['size']}x{row['size']}"
        lines.append(f"{row['pass']:<22}{size:<12}{row['layout']:<15}{row['dtype']:<10}{columns}")
    return "\n".join(lines + fused_goals.show(result["goals"], result["device"]) + tables.missing(result))


def run_table(
    args: argparse.Namespace, device: torch.device, result: tables.Result, save: Callable[[], None]
) -> tuple[str, int]:
    table(device, result, save, seconds=args.seconds)
    return show(result), int(any(entry["reason"].startswith("AssertionError") for entry in result["not_run"]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the pointwise and reduction kernels against a copy.")
    return tables.main(parser, argv, "pointwise", SECONDS, run_table)


if __name__ == "__main__":
    testing.exit_with(main())
