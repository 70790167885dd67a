"""Measure training on a GPU: time and peak memory of an SGD step, and the two goals.

    python -m bench.tables.training RESULTS_DIR [--part NAME] [--seconds S] [--continue]

ResNet34 with channel-wise PReLU in bf16 autocast, channels_last: plain, compiled, fused, and fused in torch.compile, in
turns; torch.compile's slowest mode has a part of its own, last. Written to tables.training in
RESULTS_DIR/<gpu>-<date>.json after each variant.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from atrous import fuse, testing
from atrous.tools.demo import training as demo_training
from bench.tables import fused_goals, fused_models
from bench.tables import table as tables
from bench.tables.measures import dtype_name, medians

SECONDS = {"steps": 240.0, "max_autotune": 300.0}
BATCHES = (256, 32)
VARIANTS: dict[str, Callable] = {
    "eager_channels_last": lambda model: model,
    "atrous": fuse,
    "atrous_no_recompute": functools.partial(fuse, recompute=False),
    "compile": functools.partial(torch.compile, fullgraph=True, dynamic=False),
    "atrous_compile": lambda model: torch.compile(fuse(model), fullgraph=True, dynamic=False),
    "compile_max_autotune": functools.partial(
        torch.compile, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs"
    ),
}
SLOW = "compile_max_autotune"
COMPILE_SECONDS, MAX_AUTOTUNE_SECONDS = 60.0, 240.0  # that torch.compile may take, forward and backward
BESIDE_SLOW = ("eager_channels_last", "atrous", SLOW)
FASTER, SMALLER = 1.2, 0.6  # speed-up over torch.compile at batch 256; fraction of eager's peak memory


class Step(demo_training.Step):
    """A training step under autocast with the given dtype."""

    def __init__(self, name: str, images: Tensor, dtype: torch.dtype):
        super().__init__(VARIANTS[name], fused_models.model(32).to(images.device), images)
        self.dtype = dtype

    def loss(self) -> Tensor:
        with torch.autocast(self.images.device.type, self.dtype):
            return super().loss()


def peak(step: Step) -> int:
    """Peak bytes that torch's allocator held during a step, beyond those allocated before it."""
    torch.cuda.synchronize(step.images.device)
    torch.cuda.reset_peak_memory_stats(step.images.device)
    before = torch.cuda.memory_allocated(step.images.device)
    step()
    return torch.cuda.max_memory_allocated(step.images.device) - before


def measure(
    batch: int, dtype: torch.dtype, device: torch.device, size: int, seconds: float, variants: Iterable[str]
) -> tables.GrowingRow:
    """Yields one row before each variant: milliseconds, peak bytes, and the reasons of the variants that do not run.

    A new variant is timed in turns with the first; the final numbers come from all variants in turns. Raises GpuLost.
    """
    images = torch.randn(batch, 3, size, size, device=device)
    steps: dict[str, Step] = {}
    row: dict[str, Any] = {
        "batch": batch,
        "dtype": dtype_name(dtype),
        "size": size,
        "ms": {},
        "peak": {},
        "missing": {},
    }
    for name in variants:
        left = yield row
        needed = MAX_AUTOTUNE_SECONDS if name == SLOW else COMPILE_SECONDS
        if "compile" in name and (reason := tables.too_long(needed, left)):
            row["missing"][name] = reason
            continue
        try:
            step = Step(name, images, dtype)
            step(), step()
            row["peak"][name] = peak(step) if device.type == "cuda" else 0
            steps[name] = step
            row["ms"].update(medians({key: steps[key] for key in {next(iter(steps)), name}}, device))
        except Exception as failure:
            steps.pop(name, None)
            row["missing"][name] = f"{type(failure).__name__}: {failure}".strip().splitlines()[0]
            testing.raise_if_lost(f"{name}: {row['missing'][name]}", failure)
    left = yield row
    row["ms"].update(medians(steps, device, seconds if left is None else min(seconds, left)))


def rows(result: tables.Result) -> list[dict[str, Any]]:
    return [*result.get("steps", []), *result.get("max_autotune", [])]


def goals(result: tables.Result) -> list[dict[str, str]]:
    checked = []
    for text, key, needed, better in (
        (f"a training step at batch 256: at least {FASTER:g}x torch.compile", "ms", FASTER, max),
        (f"peak memory at batch 256: at most {SMALLER:g} of eager's", "peak", SMALLER, min),
    ):
        row = next((row for row in result.get("steps", []) if row["batch"] == 256), {"ms": {}, "peak": {}})
        peer = row[key].get("compile" if key == "ms" else "eager_channels_last")
        ours = {name: value for name, value in row[key].items() if name.startswith("atrous")}
        if not peer or not ours:
            checked.append(fused_goals.goal(text, "nothing", None))
            continue
        ratios = {name: peer / value if key == "ms" else value / peer for name, value in ours.items()}
        best = better(ratios, key=lambda name: ratios[name])
        reached = ratios[best] >= needed if key == "ms" else ratios[best] <= needed
        checked.append(fused_goals.goal(text, f"{ratios[best]:.2f} ({best})", reached))
    return checked


def show(result: tables.Result) -> str:
    lines = []
    for row in rows(result):
        lines.append(f"training step of ResNet34, {row['dtype']}, batch {row['batch']}: over eager NHWC, ms, peak MB")
        eager = row["ms"].get("eager_channels_last")
        for name, ms in row["ms"].items():
            ratio = f"{eager / ms:.2f}x" if eager else "-"
            lines.append(f"  {name:<24}{ratio:>8}{ms:>10.2f}{row['peak'][name] / 1e6:>10.0f}")
        lines += [f"  {name:<24} not run: {reason}" for name, reason in row["missing"].items()]
    return "\n".join(lines + fused_goals.show(result["goals"], result["device"]) + tables.missing(result))


def table(
    device: torch.device, result: tables.Result, save: Callable[[], None],
    batches: tuple[int, ...] = BATCHES, size: int = 224, timing: float = 12.0,
    seconds: Mapping[str, float] = SECONDS,
) -> None:  # fmt: skip
    def checked() -> None:
        result["goals"] = goals(result)
        save()

    def step(batch: int, dtype: torch.dtype) -> tables.GrowingRow:
        return measure(batch, dtype, device, size, timing, [name for name in VARIANTS if name != SLOW])

    def slow_step(batch: int, dtype: torch.dtype) -> tables.GrowingRow:
        return measure(batch, dtype, device, size, timing, BESIDE_SLOW)

    parts = {
        "steps": ((step, batch, torch.bfloat16) for batch in batches),
        "max_autotune": ((slow_step, batch, torch.bfloat16) for batch in batches),
    }
    tables.fill(result, parts, seconds, checked)


def run(
    args: argparse.Namespace, device: torch.device, result: tables.Result, save: Callable[[], None]
) -> tuple[str, int]:
    table(device, result, save, seconds=args.seconds)
    missing = [pair for row in rows(result) for pair in row["missing"].items()]
    failed = [name for name, reason in missing if name.startswith("atrous") and not reason.startswith(tables.NO_TIME)]
    return show(result), int(bool(failed))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure training against torch.compile on a GPU.")
    return tables.main(parser, argv, "training", SECONDS, run)


if __name__ == "__main__":
    testing.exit_with(main())
