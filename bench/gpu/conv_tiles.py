"""Measure every tile of the CUDA C++ convolution, as evidence for the choice in csrc/cuda/conv/heuristics.cpp.

    python -m bench.gpu.conv_tiles RESULTS_DIR [--seconds S] [--continue]

Each 3x3 convolution of ResNet34 at batch 256 and 32 in bf16, with each tile of csrc/cuda, with the heuristic's own
choice ("predicted"), and by cuDNN with one epilogue kernel ("library"); "refused" has the reasons of missing tiles.
Written to tables.conv_tiles in RESULTS_DIR/<gpu>-<date>.json. Exit status 1: a result was wrong.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch

import atrous
from atrous import testing
from atrous.tools.timing import copies
from bench.tables import fused_layers
from bench.tables import table as tables
from bench.tables.layers import FusedLayer, fusable_layers
from bench.tables.measures import NHWC, dtype_name, ends, heuristic

TILES = ("wgmma-256x128", "wgmma-128x128", "wgmma-128x64", "mma-128x128", "mma-128x64", "mma-64x64")
REFUSED = "cannot compute this convolution"  # in the error of csrc/cuda when a named tile cannot run
SECONDS = {"tiles": 25.0}
Arguments = fused_layers.Arguments


def by_tile(name: str) -> Callable[[Arguments], torch.Tensor]:
    """conv_bn_act by backend native with this tile. Raises RuntimeError if the tile cannot compute it."""

    def call(arguments: Arguments) -> torch.Tensor:
        torch.ops.atrous._conv_tile(name)
        try:
            return atrous.conv_bn_act(**arguments, backend="native")
        finally:
            torch.ops.atrous._conv_tile("")

    return call


def measure(layer: FusedLayer, batch: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """One row: milliseconds per tile. Raises AssertionError before timing if a tile gives a wrong result."""
    with heuristic():
        sets = copies(lambda: testing.arguments(fused_layers.case(layer, batch), dtype, device, NHWC), device)
    calls = {name: by_tile(name) for name in TILES}
    calls["predicted"] = lambda arguments: atrous.conv_bn_act(**arguments, backend="native")
    calls["library"] = lambda arguments: atrous.conv_bn_act(**arguments, backend="library")
    end_images = {name: ends(value) if name in ("input", "residual") else value for name, value in sets[0].items()}
    refused = {}
    for name in list(calls):
        try:
            testing.assert_close(ends(calls[name](sets[0])), end_images)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
        except RuntimeError as error:
            if REFUSED not in str(error):
                raise
            refused[name] = str(error).splitlines()[0]
            del calls[name]
    ms = fused_layers.timed(calls, sets, device)
    return {
        "layer": layer.name, "in_channels": layer.in_channels, "out_channels": layer.out_channels, "size": layer.size,
        "stride": layer.stride, "residual": layer.residual, "batch": batch, "dtype": dtype_name(dtype), "ms": ms,
        "tflops": {name: layer.flop(batch) / value / 1e9 for name, value in ms.items()}, "refused": refused,
    }  # fmt: skip


def run(
    args: argparse.Namespace, device: torch.device, result: tables.Result, save: Callable[[], None]
) -> tuple[str, int]:
    # The layers for which the persistent tile exists come first.
    layers = sorted((x for x in fusable_layers() if x.kernel == 3), key=lambda x: (x.stride, -x.out_channels))
    jobs = [(measure, layer, batch, device) for batch in (256, 32) for layer in layers]
    tables.fill(result, {"tiles": jobs}, args.seconds, save)
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
    testing.exit_with(tables.main(parser, None, "conv_tiles", SECONDS, run))
