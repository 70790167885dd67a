"""The table of the passes without a convolution, by each language, beside a copy of the same run.

    python bench/pointwise_table.py RESULTS_DIR [--seconds S] [--continue]

Forward and backward over the maps of ResNet34's stages in both layouts. Each variant is one CUDA graph over sets of
tensors that the L2 cache does not hold; every result is compared with plain torch in fp64 before it is timed. Under
tables.pointwise in RESULTS_DIR/<gpu>-<date>.json, after each row. Exit status 1: a result of ours was wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import fused_goals
import table as tables
import torch
from fused_sites import timed
from measures import NHWC, dtype_name
from torch import Tensor

from atrous import ops_build, ops_cuda, ops_plain, testing
from atrous.spec import Epilogue
from atrous.timing import ceilings, copies

SECONDS = {"passes": 40.0}
SHARE = 0.85  # of a copy's bandwidth
MAPS = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, height and width
LAYOUTS = {"channels_last": NHWC, "NCHW": torch.contiguous_format}
Made = dict[str, Any]


def made(channels: int, side: int, batch: int, dtype: torch.dtype, layout: str, device: torch.device) -> Made:
    def draw() -> Tensor:
        x = torch.randn(batch, channels, side, side, device=device)
        return x.to(dtype, memory_format=LAYOUTS[layout])

    mean, var, gamma, beta, slope = (torch.rand(channels, device=device) + 0.5 for _ in range(5))
    means = torch.rand(2, channels, device=device)
    return {"z": draw(), "grad": draw(), "residual": draw(), "means": means, "vectors": (mean, var, gamma, beta, slope)}


def ending(made: Made, residual: bool = False, bn: bool = True) -> Epilogue:
    *bn_vectors, slope = made["vectors"]
    added = made["residual"] if residual else None
    return Epilogue(*(bn_vectors if bn else [None] * 4), slope_kind="tensor", slope=slope, residual=added)


# name -> feature maps read and written, and the primitive with its arguments
PASSES: dict[str, tuple[int, Callable[[Made], tuple]]] = {
    "bn_act": (2, lambda made: ("_epilogue", made["z"], *ending(made))),
    "bn_act, residual": (3, lambda made: ("_epilogue", made["z"], *ending(made, residual=True))),
    "add_act": (3, lambda made: ("_epilogue", made["z"], *ending(made, residual=True, bn=False))),
    "statistics": (1, lambda made: ("_statistics", made["z"])),
    "sums of the backward": (2, lambda made: ("_epilogue_reduce", made["grad"], made["z"], *ending(made))),
    "backward": (3, lambda made: ("_epilogue_backward", made["grad"], made["z"], made["means"], True, False,
                                  *ending(made))),
    "backward, residual": (5, lambda made: ("_epilogue_backward", made["grad"], made["z"], made["means"], True, True,
                                            *ending(made, residual=True))),
}  # fmt: skip


def languages(device: torch.device) -> dict[str, Any]:
    """Where each one's primitives are; only those that run on the device."""
    found = {}
    if device.type == "cuda" and ops_cuda.triton_runs(device):
        found["triton"] = torch.ops.atrous_triton
    if device.type == "cpu" or not ops_build.lacks(device):
        found["native"] = torch.ops.atrous
    return found


def run(namespace: Any, call: tuple) -> Any:
    return getattr(namespace, call[0])(*call[1:])


def check(name: str, call: tuple, found: Any) -> None:
    """Two roundings of the largest value that plain torch has in fp64; of sums, what fp32 leaves of so many terms.

    Raises AssertionError.
    """
    doubled = [value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in call]
    exact = run(ops_plain, tuple(doubled))
    for one, truth in zip(*(values if isinstance(values, tuple) else (values,) for values in (found, exact))):
        if truth.numel() == 0:  # a gradient that was not asked for
            continue
        rounding = torch.finfo(one.dtype).eps if one.dim() == 4 else 1e-4
        error, most = testing.largest_error(one, truth), 2 * rounding * float(truth.abs().max())
        assert error <= most, f"{name}: error {error:.3g} against fp64, allowed {most:.3g}"


def measure(
    name: str, channels: int, side: int, layout: str, batch: int, dtype: torch.dtype, device: torch.device,
    ceilings: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """One row of the table; correctness comes first."""
    maps, call = PASSES[name]
    sets = copies(lambda: made(channels, side, batch, dtype, layout, device), device)
    known = languages(device)
    for language, namespace in known.items():
        check(language, call(sets[0]), run(namespace, call(sets[0])))
    ms = timed({key: lambda one, ops=ops: run(ops, call(one)) for key, ops in known.items()}, sets, device)
    gb_s = {language: maps * sets[0]["z"].nbytes / value / 1e6 for language, value in ms.items()}
    return {
        "pass": name, "channels": channels, "size": side, "layout": layout, "batch": batch, "dtype": dtype_name(dtype),
        "maps": maps, "ms": ms, "gb_s": gb_s,
        "of_copy": {language: value / ceilings["copy_gb_s"] for language, value in gb_s.items()},
    }  # fmt: skip


def goals(result: tables.Result, expected: int) -> list[dict[str, str]]:
    """expected: how many rows there are of a dtype."""
    found = []
    for language in ("native", "triton"):
        values = {
            f"{row['pass']}, {row['channels']} channels, {row['layout']}": row["of_copy"][language]
            for row in result["passes"] if row["dtype"] == fused_goals.DTYPE and language in row["of_copy"]
        }  # fmt: skip
        text = f"passes of row {language}: at least {SHARE:.0%} of a copy's bandwidth"
        found.append(fused_goals.least(text, values, expected, SHARE, "{:.0%}".format, "passes"))
    return found


def table(
    device: torch.device, result: tables.Result, save: Callable[[], None], batch: int = 256,
    maps: tuple[tuple[int, int], ...] = MAPS, dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32),
    seconds: dict[str, float] = SECONDS, **ceiling: int,
) -> None:  # fmt: skip
    if "ceilings" not in result:
        result["ceilings"] = ceilings(device, **ceiling)

    def one(name: str, channels: int, side: int, layout: str, dtype: torch.dtype) -> dict[str, Any]:
        return measure(name, channels, side, layout, batch, dtype, device, result["ceilings"])

    jobs = [
        (one, name, channels, side, layout, dtype)
        for dtype in dtypes for channels, side in maps for layout in LAYOUTS for name in PASSES
    ]  # fmt: skip

    def checked() -> None:
        result["goals"] = goals(result, len(jobs) // len(dtypes))
        save()

    tables.fill(result, {"passes": jobs}, seconds, checked)


def show(result: tables.Result) -> str:
    """Shares of a copy's bandwidth first, then the time."""
    copy = result["ceilings"]["copy_gb_s"]
    lines = [f"{result['device']}: a copy moves {copy:.0f} GB/s; shares of that, milliseconds"]
    for row in result["passes"]:
        shares = "  ".join(f"{name} {row['of_copy'][name]:>4.0%} {ms:>8.4f}" for name, ms in row["ms"].items())
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
