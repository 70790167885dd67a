"""Times a dilated ResNet34 with ASPP and without, frozen, beside plain torch and torch.compile with freezing, in turns.

    python -m bench.commands.segmenter [--size 512] [--seconds 60] [--json FILE]

Output stride 8, batch 1, fp32, on a CPU. The eager model gets an NCHW image, the other two a channels_last one.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import atrous
from atrous.models import heads, resnet34, segmenter
from atrous.tools import timing
from bench import record

RATES = (12, 24, 36)  # DeepLabv3's at output stride 8
BOUND = 1e-4  # relative to the largest score, between fp32 results


def networks(size: int) -> dict[str, nn.Module]:
    """The backbone as a classifier, and with an ASPP head. The rates are for 512x512 and shrink with the size."""
    torch.manual_seed(0)
    backbone = resnet34(output_stride=8, features_only=True)
    rates = tuple(max(1, rate * size // 512) for rate in RATES)
    head = heads.ASPP(backbone.channels[-1], rates=rates)
    return {"backbone": resnet34(output_stride=8).eval(), "with ASPP": segmenter(backbone, head, 21).eval()}


def variants(model: nn.Module, image: Tensor) -> dict[str, Callable[[], Any]]:
    """Calls of the model as it is, compiled, and fused; each was called once. Raises if their results differ."""
    last = image.contiguous(memory_format=torch.channels_last)
    fused = atrous.fuse(model, freeze=True)
    compiled = torch.compile(copy.deepcopy(model).to(memory_format=torch.channels_last), options={"freezing": True})
    expected = model(image)
    for name, got in (("atrous", fused(last)), ("torch.compile with freezing", compiled(last))):
        error = float((got - expected).abs().max() / expected.abs().max())
        if not error <= BOUND:
            raise RuntimeError(f"{name}: expected an error of at most {BOUND}, got {error:.2g}")
    return {"eager": lambda: model(image), "compiled": lambda: compiled(last), "atrous": lambda: fused(last)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=512, help="side of the image (default 512)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measurement for each network (default 60)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    image, rows = torch.randn(1, 3, args.size, args.size), []
    with torch.no_grad():
        for name, model in networks(args.size).items():
            calls = variants(model, image)
            ms = timing.medians(timing.interleaved(calls, torch.device("cpu"), args.seconds))
            rows.append({"network": name, "size": args.size, "median_ms": ms})
            over = ", ".join(f"{ms[peer] / ms['atrous']:.2f}x {peer}" for peer in ("eager", "compiled"))
            print(f"{name:<10} {over}; " + ", ".join(f"{peer} {time:.0f} ms" for peer, time in ms.items()), flush=True)
    if args.json:
        record.write_rows(args.json, rows)


if __name__ == "__main__":
    main()
