"""The table of the passes without a convolution, by each language, beside a copy that moves as many bytes.

    python -m bench.tables.pointwise RESULTS_DIR [--seconds S] [--continue]

Forward and backward over the maps of ResNet34's stages in both layouts. Each variant, the copy too, is one CUDA graph
over sets of tensors that the L2 cache does not hold. A copy of a gigabyte is no peer: what writes a map of 12 MB writes
into the cache. Every result is compared with plain torch in fp64 before it is timed. Under tables.pointwise in
RESULTS_DIR/<gpu>-<date>.json, after each row. Exit status 1: a result of ours was wrong.
"""

from __future__ import annotations

import argparse
import sys
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
from bench.tables.fused_sites import timed
from bench.tables.measures import NHWC, dtype_name

SECONDS = {"passes": 40.0}
SHARE = 0.85  # of the copy's speed
MAPS = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, height and width
LAYOUTS = {"channels_last": NHWC, "NCHW": torch.contiguous_format}
Made = dict[str, Any]


class Pass(NamedTuple):
    """A primitive: the feature maps that it reads, how many it writes, its name and arguments from a set of tensors."""

    reads: tuple[str, ...]
    writes: int
    call: Callable[[Made], tuple]

    @property
    def maps(self) -> int:
        return len(self.reads) + self.writes


def made(
    one: Pass, channels: int, side: int, batch: int, dtype: torch.dtype, layout: str, device: torch.device
) -> Made:
    """The maps that the pass reads, its vectors, and as "half" so much that reading and writing it moves as many bytes
    as the pass does."""
    size = (batch, channels, side, side)
    maps = {name: torch.randn(size, device=device).to(dtype, memory_format=LAYOUTS[layout]) for name in one.reads}
    mean, var, gamma, beta, slope = (torch.rand(channels, device=device) + 0.5 for _ in range(5))
    half = torch.zeros(-(-one.maps * maps["z"].numel() // 2), dtype=dtype, device=device)
    means = torch.rand(2, channels, device=device)
    return {**maps, "half": half, "means": means, "vectors": (mean, var, gamma, beta, slope)}


def ending(made: Made, residual: bool = False, bn: bool = True) -> Epilogue:
    *bn_vectors, slope = made["vectors"]
    added = made["residual"] if residual else None
    return Epilogue(*(bn_vectors if bn else [None] * 4), slope_kind="tensor", slope=slope, residual=added)


def backward(made: Made, residual: bool = False) -> tuple:
    return ("_epilogue_backward", made["grad"], made["z"], made["means"], True, residual, *ending(made, residual))


PASSES = {
    "bn_act": Pass(("z",), 1, lambda made: ("_epilogue", made["z"], *ending(made))),
    "bn_act, residual": Pass(("z", "residual"), 1, lambda made: ("_epilogue", made["z"], *ending(made, True))),
    "add_act": Pass(("z", "residual"), 1, lambda made: ("_epilogue", made["z"], *ending(made, True, bn=False))),
    "statistics": Pass(("z",), 0, lambda made: ("_statistics", made["z"])),
    "sums of the backward": Pass(
        ("grad", "z"), 0, lambda made: ("_epilogue_reduce", made["grad"], made["z"], *ending(made))
    ),
    "backward": Pass(("grad", "z"), 1, backward),
    "backward, residual": Pass(("grad", "z", "residual"), 2, lambda made: backward(made, True)),
}


def languages(device: torch.device) -> dict[str, Any]:
    """Where each one's primitives are; only those that run on the device."""
    found = {}
    if device.type == "cuda" and triton_impl.triton_runs(device):
        found["triton"] = torch.ops.atrous_triton
    if device.type == "cpu" or not device_support.lacks(device):
        found["native"] = torch.ops.atrous
    return found


def run(namespace: Any, call: tuple) -> Any:
    return getattr(namespace, call[0])(*call[1:])


def check(name: str, call: tuple, found: Any) -> None:
    """Two roundings of the largest value that plain torch has in fp64; of sums, what fp32 leaves of so many terms.

    Raises AssertionError.
    """
    doubled = [value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in call]
    exact = run(eager, tuple(doubled))
    for one, truth in zip(*(values if isinstance(values, tuple) else (values,) for values in (found, exact))):
        if truth.numel() == 0:  # a gradient that was not asked for
            continue
        rounding = torch.finfo(one.dtype).eps if one.dim() == 4 else 1e-4
        error, most = testing.largest_error(one, truth), 2 * rounding * float(truth.abs().max())
        assert error <= most, f"{name}: error {error:.3g} against fp64, allowed {most:.3g}"


def measure(
    name: str, channels: int, side: int, layout: str, batch: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """One row of the table; correctness comes first."""
    one, known = PASSES[name], languages(device)
    sets = copies(lambda: made(one, channels, side, batch, dtype, layout, device), device)
    for language, namespace in known.items():
        check(language, one.call(sets[0]), run(namespace, one.call(sets[0])))
    calls = {key: lambda made, ops=ops: run(ops, one.call(made)) for key, ops in known.items()}
    ms = timed({**calls, "copy": lambda made: made["half"].clone()}, sets, device)
    moved = one.maps * sets[0]["z"].nbytes
    return {
        "pass": name, "channels": channels, "size": side, "layout": layout, "batch": batch, "dtype": dtype_name(dtype),
        "maps": one.maps, "ms": ms, "gb_s": {variant: moved / value / 1e6 for variant, value in ms.items()},
        "of_copy": {language: ms["copy"] / ms[language] for language in known},
    }  # fmt: skip


def goals(result: tables.Result, expected: int) -> list[dict[str, str]]:
    """expected: how many rows there are of a dtype."""
    found = []
    for language in ("native", "triton"):
        values = {
            f"{row['pass']}, {row['channels']} channels, {row['layout']}": row["of_copy"][language]
            for row in result["passes"] if row["dtype"] == fused_goals.DTYPE and language in row["of_copy"]
        }  # fmt: skip
        text = f"passes of row {language}: at least {SHARE:.0%} of the speed of a copy of as many bytes"
        found.append(fused_goals.least(text, values, expected, SHARE, "{:.0%}".format, "passes"))
    return found


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
    """Milliseconds, and the speed in that of the copy; last the copy itself."""
    lines = [f"{result['device']}: milliseconds, and the speed beside a copy of as many bytes"]
    for row in result["passes"]:
        shares = "  ".join(f"{name} {row['ms'][name]:>8.4f} {share:>4.0%}" for name, share in row["of_copy"].items())
        shares += f"  copy {row['ms']['copy']:>8.4f} ({row['gb_s']['copy']:.0f} GB/s)"
        size = f"{row['channels']}x{row['size']}x{row['size']}"
        lines.append(f"{row['pass']:<22}{size:<12}{row['layout']:<15}{row['dtype']:<10}{shares}")
    return "\n".join(lines + fused_goals.show(result["goals"], result["device"]) + tables.missing(result))


def filled(
    args: argparse.Namespace, device: torch.device, result: tables.Result, save: Callable[[], None]
) -> tuple[str, int]:
    table(device, result, save, seconds=args.seconds)
    return show(result), int(any(entry["reason"].startswith("AssertionError") for entry in result["not_run"]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Passes without a convolution beside a copy.")
    return tables.main(parser, argv, "pointwise", SECONDS, filled)


if __name__ == "__main__":
    sys.exit(main())
