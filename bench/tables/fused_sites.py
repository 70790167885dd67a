"""One fused site of ResNet34: rows of ours, plain eager and the library's convolution alone, in turns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import atrous
from atrous import testing, tuning
from atrous.backends import selection
from atrous.core import checks
from atrous.tools.timing import copies
from bench.tables.layers import Site
from bench.tables.measures import NHWC, dtype_name, ends, heuristic, medians, replayed

ROWS = ("library", "triton", "native")  # native where it is built for the card
CALLS = 10  # of a CUDA graph at least: its own launch does not count then
Made = dict[str, Any]  # keyword arguments of conv_bn_act


def case(site: Site, batch: int) -> testing.Case:
    return testing.Case(
        str(site), (batch, site.in_channels, site.size, site.size), site.out_channels, (site.kernel,) * 2,
        *site.geometry, slope="channel" if site.act else 1.0, residual="before" if site.residual else None,
    )  # fmt: skip


def check(made: Made, rows: tuple[str, ...]) -> None:
    """Each row against fp64 on the first and last images. Raises AssertionError, with the row's name."""
    outputs = {row: ends(atrous.conv_bn_act(**made, backend=row)) for row in rows}
    few = {name: ends(value) if name in ("input", "residual") else value for name, value in made.items()}
    with heuristic():
        for row, y in outputs.items():
            try:
                testing.assert_close(y, few)
            except AssertionError as error:
                raise AssertionError(f"{row}: {error}") from None


def variants(site: Site, rows: tuple[str, ...]) -> dict[str, Callable[[Made], Tensor]]:
    """What is timed, by name; "convolution" has nothing behind it."""

    def ours(row: str) -> Callable[[Made], Tensor]:
        return lambda made: atrous.conv_bn_act(**made, backend=row)

    def convolution(made: Made) -> Tensor:
        return torch.conv2d(made["input"], made["weight"], None, *site.geometry)

    return {**{row: ours(row) for row in rows}, "eager": testing.eager, "convolution": convolution}


def timed(calls: dict[str, Callable[[Made], Tensor]], sets: list[Made], device: torch.device) -> dict[str, float]:
    """Milliseconds of one call. On a card each variant is one CUDA graph with a call on every set: in Python a call
    takes longer than most of these kernels, and no set is in the cache when it comes again."""
    count = max(len(sets), CALLS if device.type == "cuda" else 1)

    def over(call: Callable[[Made], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for made in itertools.islice(itertools.cycle(sets), count):
                call(made)

        return replayed(run, device)

    times = medians({name: over(call) for name, call in calls.items()}, device)
    return {name: ms / count for name, ms in times.items()}


def chosen(made: Made) -> dict[str, Any]:
    """The row that backend="auto" takes for this call, and whether that was measured ("tuned"), else it is the rule's;
    the config that row triton takes from a table, which may be that of the same shape at another dilation."""
    x, w, residual = made["input"], made["weight"], "residual" in made
    spec, _ = checks.convolution(x, w, None, *(made[name] for name in ("stride", "padding", "dilation", "groups")))
    config = tuning.measured_config(x, w, spec, residual)
    return {
        "auto": selection.choose("auto", x, w, spec, residual=residual).name,
        "tuned": tuning.measured(x, w, spec, residual) is not None,
        "config": config.describe() if config is not None else None,
    }


def floor(site: Site, batch: int, element_size: int, ceilings: dict[str, float]) -> float:
    """Milliseconds that no kernel can beat: every multiply-add at the measured matrix ceiling, or input, weight,
    residual and output once each at that of a copy."""
    maps = site.in_channels * site.size**2 + (2 if site.residual else 1) * site.out_channels * site.out_size**2
    moved = element_size * (batch * maps + site.out_channels * site.in_channels * site.kernel**2)
    return max(site.flop(batch) / ceilings["matmul_tflops"] / 1e9, moved / ceilings["copy_gb_s"] / 1e6)


def measure(
    site: Site, batch: int, dtype: torch.dtype, device: torch.device, ceilings: dict[str, float], rows=ROWS
) -> dict[str, Any]:
    """One row of the table; correctness comes first."""
    with heuristic():
        sets = copies(lambda: testing.arguments(case(site, batch), dtype, device, NHWC), device)
    if selection.reasons("native", sets[0]["input"]):
        rows = tuple(row for row in rows if row != "native")
    check(sets[0], rows)
    ms = timed(variants(site, rows), sets, device)
    tflops = {name: site.flop(batch) / value / 1e9 for name, value in ms.items()}
    least = floor(site, batch, dtype.itemsize, ceilings)
    return {
        "layer": site.name, "count": site.count, "in_channels": site.in_channels, "out_channels": site.out_channels,
        "kernel": site.kernel, "stride": site.stride, "size": site.size, "dilation": site.dilation, "act": site.act,
        "residual": site.residual, "batch": batch, "dtype": dtype_name(dtype), **chosen(sets[0]), "ms": ms,
        "tflops": tflops, "of_matmul": {name: value / ceilings["matmul_tflops"] for name, value in tflops.items()},
        "of_floor": {name: least / value for name, value in ms.items() if name != "convolution"},
    }  # fmt: skip
