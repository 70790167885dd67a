"""The tiles of the CUDA C++ convolution side by side: what conv/heuristics.cpp's choice is changed by.

    python -m bench.gpu.conv_tiles RESULTS_DIR [--seconds S] [--continue]

Each 3x3 convolution of ResNet34 at batch 256 and 32 in bf16, with each tile that csrc/cuda has, "predicted" for the
plan's own choice and "library" for cuDNN with one pass of ours; "refused" says why a row lacks a tile. Under
tables.conv_tiles in RESULTS_DIR/<gpu>-<date>.json. Exit status 1: a result was wrong.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

import torch  # noqa: E402

import atrous  # noqa: E402
from atrous import testing  # noqa: E402
from atrous.tools.timing import copies  # noqa: E402
from bench.tables import fused_sites  # noqa: E402
from bench.tables import table as tables  # noqa: E402
from bench.tables.layers import Site, sites  # noqa: E402
from bench.tables.measures import NHWC, dtype_name, ends, heuristic  # noqa: E402

TILES = ("wgmma-256x128", "wgmma-128x128", "wgmma-128x64", "mma-128x128", "mma-128x64", "mma-64x64")
REFUSED = "cannot compute this convolution"  # what csrc/cuda says of a tile that is named
SECONDS = {"tiles": 25.0}
Made = dict[str, Any]


def by_tile(name: str) -> Callable[[Made], torch.Tensor]:
    """The convolution by the backend native with this tile; RuntimeError with the reason where it cannot compute it."""

    def call(made: Made) -> torch.Tensor:
        torch.ops.atrous._conv_tile(name)
        try:
            return atrous.conv_bn_act(**made, backend="native")
        finally:
            torch.ops.atrous._conv_tile("")

    return call


def measure(site: Site, batch: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Milliseconds of each tile; every one is right first."""
    with heuristic():
        sets = copies(lambda: testing.arguments(fused_sites.case(site, batch), dtype, device, NHWC), device)
    calls = {name: by_tile(name) for name in TILES}
    calls["predicted"] = lambda made: atrous.conv_bn_act(**made, backend="native")
    calls["library"] = lambda made: atrous.conv_bn_act(**made, backend="library")
    few = {name: ends(value) if name in ("input", "residual") else value for name, value in sets[0].items()}
    refused = {}
    for name in list(calls):
        try:
            testing.assert_close(ends(calls[name](sets[0])), few)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
        except RuntimeError as error:
            if REFUSED not in str(error):
                raise
            refused[name] = str(error).splitlines()[0]
            del calls[name]
    ms = fused_sites.timed(calls, sets, device)
    return {
        "layer": site.name, "in_channels": site.in_channels, "out_channels": site.out_channels, "size": site.size,
        "stride": site.stride, "residual": site.residual, "batch": batch, "dtype": dtype_name(dtype), "ms": ms,
        "tflops": {name: site.flop(batch) / value / 1e9 for name, value in ms.items()}, "refused": refused,
    }  # fmt: skip


def run(
    args: argparse.Namespace, device: torch.device, result: tables.Result, save: Callable[[], None]
) -> tuple[str, int]:
    # What the persistent tile is for comes first.
    every = sorted((site for site in sites() if site.kernel == 3), key=lambda site: (site.stride, -site.out_channels))
    tables.fill(
        result, {"tiles": [(measure, s, batch, device) for batch in (256, 32) for s in every]}, args.seconds, save
    )
    columns = (*TILES, "predicted", "library")
    lines = [f"{'TFLOP/s':<24}" + "".join(f"{name:>15}" for name in columns)]
    for row in result["tiles"]:
        label = f"{row['layer']} batch {row['batch']}"
        lines.append(f"{label:<24}" + "".join(f"{row['tflops'].get(name, math.nan):>15.0f}" for name in columns))
    lines += sorted({reason for row in result["tiles"] for reason in row["refused"].values()})
    wrong = any(entry["reason"].startswith("AssertionError") for entry in result["not_run"])
    return "\n".join(lines + tables.missing(result)), int(wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sys.exit(tables.main(parser, None, "conv_tiles", SECONDS, run))
