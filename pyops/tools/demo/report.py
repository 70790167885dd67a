"""Render the demo's result as text for a terminal of 60 columns."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from ..text_table import align, plural, speedup, wrap
from ..timing import LIMIT
from .training import LABELS as TRAINING
from .variants import LABELS

Result = dict[str, Any]
COLUMN = 10
SPREAD = f"± half the distance of the rounds' quartiles in percent; in parentheses above {LIMIT:.0%}"


def header(result: Result) -> str:
    device, versions, model = result["device"], result["versions"], result["model"]
    threads = f"{plural(device['threads'], 'thread')}, " if device["type"] == "cpu" else ""
    images = ", ".join(model["images"])
    size = model["size"]
    return "\n".join(
        _wrapped(line)
        for line in (
            f"atrous {versions['atrous']}, torch {versions['torch']}, Python {versions['python']}",
            f"{device['name']}, {threads}{device['capability']}",
            f"ResNet34 at {size}x{size}, weights: {model['weights']}",
            f"photographs: {images}",
        )
    )


def machine(device: dict[str, Any]) -> str:
    """The device's name, of a CPU with its threads and instructions."""
    more = f", {plural(device['threads'], 'thread')}, {device['capability']}" if device["type"] == "cpu" else ""
    return f"{device['name']}{more}"


def agreement(result: Result) -> str:
    by_dtype = result["agreement"]
    logit = max(row["largest_logit"] for row in by_dtype.values())
    count = next(iter(by_dtype.values()))["images"]
    what = f"\nLargest error of a logit against the plain model in fp64, {count} images (logits reach {logit:.1f})"
    rows = [("", "plain", "atrous frozen", "allowed", "   same top class")]
    for dtype, row in by_dtype.items():
        top = f"{row['eager_same_top1']} and {row['atrous_frozen_same_top1']} of {row['images']}"
        verdict = "" if row["agrees"] else "   DISAGREES"
        errors = (f"{row[key]:.2g}" for key in ("eager", "atrous_frozen", "allowed"))
        rows.append((dtype, *errors, f"   {top}{verdict}"))
    return "\n".join([_wrapped(what), *align(rows, (10, 9, 15, 9, 60), left=(0, 4), gap="")])


def fusion(result: Result) -> str:
    """The fusion report in short: how many layers of each kind are fused, and the reason for each that is not."""
    report, launched = result["fusion"], result["launches"]
    kinds: dict[str, int] = {}
    for layer in report["sites"]:
        if layer["fused"]:
            kinds[layer["pattern"]] = kinds.get(layer["pattern"], 0) + 1
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    lines = [f"\nFused {report['fused']} of {report['total']} layers: {counts}"]
    lines += [f"not fused: {layer['path']}: {layer['reason']}" for layer in report["sites"] if not layer["fused"]]
    lines += [f"graph break: {reason}" for reason in report["breaks"]]
    lines.append(f"Operators launched in one forward: {launched['eager']} plain, {launched['atrous_frozen']} frozen")
    return "\n".join(_wrapped(line) for line in lines)


def columns(result: Result) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["dtype"], row["batch"]) for row in result["inference"]))


def variants(result: Result) -> list[str]:
    used = {row["variant"] for row in (*result["inference"], *result["not_run"])}
    return [name for name in LABELS if name in used]


def times(result: Result) -> str:
    first = result["inference"][0]["dtype"] if result["inference"] else ""
    lines = [
        _wrapped(f"\nInference: speed-up over eager NCHW in {first} at the same batch (higher is better), {SPREAD}"),
        *_table(result, speed),
        *noise(result["inference"]),
        _wrapped("\nMedian time of a forward in milliseconds"),
        *_table(result, lambda row: f"{row['median_ms']:.1f}"),
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in result["not_run"]:
        where = f"{row['dtype']} batch {row['batch']}"
        reasons.setdefault((row["variant"], row["reason"]), []).append(where)
    for (name, reason), cells in reasons.items():
        lines.append(_wrapped(f"not run: {label(name)} ({', '.join(cells)}): {reason}"))
    return "\n".join(lines)


def speed(row: dict[str, Any]) -> str:
    return speedup(row["speedup_vs_eager"], row["spread"], row["counted"])


def noise(rows: list[dict[str, Any]]) -> list[str]:
    """A line if the machine was not quiet while the rows were measured."""
    noisy = sum(not row["counted"] for row in rows)
    if not noisy:
        return []
    text = f"noisy machine: {noisy} of {len(rows)} speed-ups spread by more than {LIMIT:.0%}; repeat it on an idle one"
    return [_wrapped(text)]


def training(result: Result) -> str:
    """One line per variant: speed-up, time, saved bytes."""
    if not result["training"]:
        return ""
    first, saved = result["training"][0], {row["variant"]: row["saved_bytes_per_image"] for row in result["memory"]}
    what = f"\nTraining: an SGD step in {first['dtype']}, batch {first['batch']}; MB per image saved for the backward"
    rows = [("", "speed-up", "ms", "MB")]
    for row in result["training"]:
        numbers = speed(row), f"{row['median_ms']:.0f}", f"{saved[row['variant']] / 1e6:.1f}"
        rows.append((TRAINING[row["variant"]], *numbers))
    lines = [_wrapped(what), *align(rows, (18, 12, 8, 8), gap=""), *noise(result["training"])]
    lines += [_wrapped(f"not run: {TRAINING[row['variant']]}: {row['reason']}") for row in result["training_not_run"]]
    errors = result["agreement_of_gradients"]
    what = f"Error of all gradients against the plain model in fp64: fused in fp64 {errors['float64']:.1g}, in fp32 "
    lines.append(_wrapped(f"{what}{errors['atrous']:.1g}, plain in fp32 {errors['eager']:.1g}"))
    return "\n".join(lines)


def label(name: str) -> str:
    """The name of a variant outside of the table: complete without the line above it."""
    text = LABELS[name]
    return f"torch.compile {text.strip()}" if text.startswith(" ") else text


def _table(result: Result, form: Callable[[dict[str, Any]], str]) -> list[str]:
    """A line per variant, and a column per dtype and batch, in as many tables as the width needs."""
    known = {(row["variant"], row["dtype"], row["batch"]): form(row) for row in result["inference"]}
    names, cells = variants(result), columns(result)
    left = max(len(LABELS[name]) for name in names)
    width = max(COLUMN, *map(len, known.values()))
    fit = max(1, (_width() - left) // (width + 1))
    lines: list[str] = []
    for first in range(0, len(cells), fit):
        part = cells[first : first + fit]
        rows = [["", *(dtype for dtype, _ in part)], ["", *(f"batch {size}" for _, size in part)]]
        rows += [[LABELS[name], *(known.get((name, *cell), "not run") for cell in part)] for name in names]
        lines += align(rows, [left, *[width] * len(part)], gap=" ")
    return lines


def _wrapped(text: str) -> str:
    return "\n".join(wrap(line, _width()) for line in text.split("\n"))


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)
