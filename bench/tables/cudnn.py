"""Measure cuDNN's convolutions, eager and torch.compile on a GPU, without any kernel of this package.

    python -m bench.tables.cudnn RESULTS_DIR [--part NAME] [--seconds S] [--continue]

TFLOP/s of cuDNN's forward, dgrad and wgrad for each convolution of ResNet34 at dilation 1, 2 and 4; images per second
of eager and torch.compile for inference and a training step; and the two ceilings in the same run: a large matrix
product and a copy. Written to tables.cudnn in RESULTS_DIR/<gpu>-<date>.json. Each part has a time budget; measurements
that do not fit are listed under "not_run", and `--continue` runs them in another call.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from atrous import testing
from atrous.tools.timing import ceilings
from bench.tables import table as tables
from bench.tables.layers import dilated, layers
from bench.tables.measures import PASSES, convolution, network

SECONDS = {"convolutions": 60.0, "models": 90.0}


def table(
    device: torch.device,
    result: tables.Result,
    save: Callable[[], None],
    size: int = 224,
    batch: int = 32,
    batches: tuple[int, ...] = (1, 32, 256),
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16),
    seconds: dict[str, float] = SECONDS,
    **ceiling: int,
) -> None:
    """Fills the result; `save` is called after each row, so that an interrupted run loses nothing."""
    if "ceilings" not in result:
        result["ceilings"] = ceilings(device, **ceiling)
    convolutions = (
        (convolution, layer, direction, batch, dtype, device)
        for dtype in dtypes for layer in dilated(layers(size)) for direction in PASSES
    )  # fmt: skip
    networks = (
        (network, variant, training, count, device, size, dtypes[0])
        for variant in ("eager", "eager_channels_last", "compile") for training in (False, True) for count in batches
    )  # fmt: skip
    tables.fill(result, {"convolutions": convolutions, "models": networks}, seconds, save)


def show(result: dict[str, Any]) -> str:
    """The table as text: each convolution's fraction of the matmul ceiling, then images per second."""
    top = result["ceilings"]["matmul_tflops"]
    lines = [f"{result['device']}: matmul {top:.0f} TFLOP/s, copy {result['ceilings']['copy_gb_s']:.0f} GB/s"]
    convolutions = result.get("convolutions", [])
    known = {(r["dtype"], r["layer"], r["dilation"], r["pass"]): r["tflops"] for r in convolutions}
    lines.append(f"{'of matmul ceiling':<22}{'dtype':<10}{'dilation':>8}" + "".join(f"{name:>9}" for name in PASSES))
    for dtype, layer, dilation in dict.fromkeys(key[:3] for key in known):
        tflops = [known.get((dtype, layer, dilation, name)) for name in PASSES]
        fractions = "".join("        -" if t is None else f"{t / top:>9.0%}" for t in tflops)
        lines.append(f"{layer:<22}{dtype:<10}{dilation:>8}{fractions}")
    for row in result.get("models", []):
        lines.append(f"{row['mode']:<10}{row['variant']:<21}batch {row['batch']:<4}{row['images_s']:>9.0f} img/s")
    return "\n".join(lines + tables.missing(result))


def run(
    args: argparse.Namespace, device: torch.device, result: tables.Result, save: Callable[[], None]
) -> tuple[str, int]:
    table(device, result, save, batch=args.batch, seconds=args.seconds)
    return show(result), 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure cuDNN's convolutions and torch.compile on this GPU.")
    parser.add_argument("--batch", type=int, default=32, help="batch size of the convolutions (default 32)")
    return tables.main(parser, argv, "cudnn", SECONDS, run)


if __name__ == "__main__":
    testing.exit_with(main())
