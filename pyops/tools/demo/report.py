"""Render the demo's result: as text for a terminal of 60 columns, and as a plot."""

from __future__ import annotations

import shutil
from typing import Any

from ..image_file import png
from ..text_table import align, wrap
from .training import LABELS as TRAINING
from .variants import LABELS

Result = dict[str, Any]


def header(result: Result) -> str:
    device, versions, model = result["device"], result["versions"], result["model"]
    more = f"{device['threads']} threads, {device['capability']}" if device["type"] == "cpu" else device["capability"]
    images = ", ".join(model["images"])
    size = model["size"]
    return "\n".join(
        _wrapped(line)
        for line in (
            f"atrous {versions['atrous']}, torch {versions['torch']}, Python {versions['python']}",
            f"{device['name']}, {more}",
            f"ResNet34 at {size}x{size}, weights: {model['weights']}",
            f"photographs: {images}",
        )
    )


def agreement(result: Result) -> str:
    by_dtype = result["agreement"]
    logit = max(row["largest_logit"] for row in by_dtype.values())
    count = next(iter(by_dtype.values()))["images"]
    what = f"\nLargest error of a logit against the plain model in fp64, {count} images (logits reach {logit:.1f})"
    rows = [("", "plain", "atrous", "allowed", "   same top class")]
    for dtype, row in by_dtype.items():
        top = f"{row['eager_same_top1']} and {row['atrous_same_top1']} of {row['images']}"
        verdict = "" if row["agrees"] else "   DISAGREES"
        errors = (f"{row[key]:.2g}" for key in ("eager", "atrous", "allowed"))
        rows.append((dtype, *errors, f"   {top}{verdict}"))
    return "\n".join([_wrapped(what), *align(rows, (10, 9, 9, 9, 60), left=(0, 4), gap="")])


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
    lines.append(f"Operators launched in one forward: {launched['eager']} plain, {launched['atrous']} fused")
    return "\n".join(_wrapped(line) for line in lines)


def columns(result: Result) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["dtype"], row["batch"]) for row in result["inference"]))


def variants(result: Result) -> list[str]:
    used = {row["variant"] for row in (*result["inference"], *result["not_run"])}
    return [name for name in LABELS if name in used]


def times(result: Result) -> str:
    first = result["inference"][0]["dtype"] if result["inference"] else ""
    speed = _table(result, "speedup_vs_eager", "{:.2f}x")
    lines = [
        _wrapped(f"\nInference: speed-up over eager NCHW in {first} at the same batch (higher is better)"),
        *speed,
        _wrapped("\nMedian time of a forward in milliseconds"),
        *_table(result, "median_ms", "{:.1f}"),
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in result["not_run"]:
        where = f"{row['dtype']} batch {row['batch']}"
        reasons.setdefault((row["variant"], row["reason"]), []).append(where)
    for (name, reason), cells in reasons.items():
        lines.append(_wrapped(f"not run: {label(name)} ({', '.join(cells)}): {reason}"))
    return "\n".join(lines)


def training(result: Result) -> str:
    """One line per variant: speed-up, time, saved bytes."""
    if not result["training"]:
        return ""
    first, saved = result["training"][0], {row["variant"]: row["saved_bytes_per_image"] for row in result["memory"]}
    what = f"\nTraining: an SGD step in {first['dtype']}, batch {first['batch']}; MB per image saved for the backward"
    rows = [("", "speed-up", "ms", "MB")]
    for row in result["training"]:
        numbers = f"{row['speedup_vs_eager']:.2f}x", f"{row['median_ms']:.0f}", f"{saved[row['variant']] / 1e6:.1f}"
        rows.append((TRAINING[row["variant"]], *numbers))
    lines = [_wrapped(what), *align(rows, (20, 10, 8, 8), gap="")]
    lines += [_wrapped(f"not run: {TRAINING[row['variant']]}: {row['reason']}") for row in result["training_not_run"]]
    errors = result["agreement_of_gradients"]
    what = f"Error of all gradients against the plain model in fp64: fused in fp64 {errors['float64']:.1g}, in fp32 "
    lines.append(_wrapped(f"{what}{errors['atrous']:.1g}, plain in fp32 {errors['eager']:.1g}"))
    return "\n".join(lines)


def label(name: str) -> str:
    """The name of a variant outside of the table: complete without the line above it."""
    text = LABELS[name]
    return f"torch.compile {text.strip()}" if text.startswith(" ") else text


def _table(result: Result, key: str, form: str) -> list[str]:
    known = {(row["variant"], row["dtype"], row["batch"]): form.format(row[key]) for row in result["inference"]}
    cells = columns(result)
    rows = [["", *(dtype for dtype, _ in cells)], ["", *(f"batch {size}" for _, size in cells)]]
    rows += [[LABELS[name], *(known.get((name, *cell), "not run") for cell in cells)] for name in variants(result)]
    return align(rows, [20, *[10] * len(cells)], gap="")


def _wrapped(text: str) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n".join(wrap(line, width) for line in text.split("\n"))


def plot(result: Result) -> bytes:
    """A PNG with a panel per batch and dtype: a bar per variant, as long as its speed-up, both numbers beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells, names, device = columns(result), variants(result), result["device"]
    known = {(row["variant"], row["dtype"], row["batch"]): row for row in result["inference"]}
    wide = max(row["speedup_vs_eager"] for row in result["inference"])
    batches = len({size for _, size in cells})
    rows = -(-len(cells) // batches)
    figure = Figure(figsize=(5.2 * batches, (0.42 * len(names) + 0.9) * rows + 1.3), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (dtype, size) in zip(figure.subplots(rows, batches, squeeze=False).flat, cells):
        for position, name in enumerate(names):
            row = known.get((name, dtype, size))
            length = row["speedup_vs_eager"] if row else 0.0
            text = f"{length:.2f}x   {row['median_ms']:.1f} ms" if row else "not run"
            colour, weight = ("#d1495b", "bold") if name.startswith("atrous") else ("#8d99ae", "normal")
            axes.barh(position, length, color=colour, height=0.7, zorder=2)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # so that the line at 1 stays behind it
            axes.text(length + 0.03 * wide, position, text, va="center", fontsize=9, weight=weight, bbox=box, zorder=3)
        axes.axvline(1.0, color="#2b2d42", linewidth=0.8, linestyle=":", zorder=1)
        axes.set_yticks(range(len(names)), [label(name).replace("torch.compile with", "compile,") for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, wide * 1.5)
        axes.set_title(f"{dtype}, batch {size}", fontsize=10, loc="left")
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    first, side = cells[0][0], result["model"]["size"]
    title = f"ResNet34 at {side}x{side}, inference: speed-up over eager NCHW in {first} at the same batch"
    figure.suptitle(title, fontsize=11)
    versions = result["versions"]
    more = f", {device['threads']} threads, {device['capability']}" if device["type"] == "cpu" else ""
    figure.supxlabel(f"{device['name']}{more}; torch {versions['torch']}, atrous {versions['atrous']}", fontsize=8)
    return png(figure)
