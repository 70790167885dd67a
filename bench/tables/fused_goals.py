"""Performance goals, set for an H100, checked against a result; goals without enough rows are "not measured"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.tables.layers import FusedLayer

Result = dict[str, Any]
OURS, PEER = "triton", "compile_max_autotune"
DTYPE = "bfloat16"
FRACTIONS = (((64, 64), 0.40), ((128, 512), 0.55))  # output channels of a 3x3 layer, fraction of the matmul ceiling
FRACTION_BATCH = 256
NOISE = 0.02  # two medians of one run may differ by so much
CROSSING = 0.60  # if cuDNN's convolutions exceed this fraction of the ceiling, the smaller speed-up is the goal
ABOVE, BELOW = 1.15, 1.30  # speed-up over PEER, above CROSSING and below it
BATCH_1, DILATED = 1.50, 1.30  # speed-up over PEER
OF_CUDNN = 0.70


def goal(text: str, measured: str, reached: bool | None) -> dict[str, str]:
    state = "not measured" if reached is None else "reached" if reached else "not reached"
    return {"goal": text, "measured": measured, "state": state}


def at_least(
    text: str, values: dict[str, float], expected: int, needed: float, form: Callable[[float], str], things="layers"
) -> dict:
    """The goal that the smallest value is at least `needed`; one below decides even if others are missing."""
    if not values:
        return goal(text, "nothing", None)
    name = min(values, key=lambda key: values[key])
    measured = f"{form(values[name])} at worst ({name}); {len(values)} of {expected} {things}"
    enough = values[name] >= needed
    return goal(text, measured, enough if len(values) == expected or not enough else None)


def layer_rows(result: Result, batch: int) -> list[dict[str, Any]]:
    return [row for row in result.get("layers", []) if row["batch"] == batch and row["dtype"] == DTYPE]


def network_rows(result: Result) -> list[dict[str, Any]]:
    """The rows of all three network parts; torch.compile's rows are separate and repeat eager."""
    return [row for part in ("networks", "compiled", "max_autotune") for row in result.get(part, [])]


def named(row: dict[str, Any]) -> str:
    return f"{row['layer']} dilation {row['dilation']}"


def matmul_fractions(result: Result, layers: list[FusedLayer]) -> list[dict]:
    goals = []
    for (low, high), needed in FRACTIONS:
        expected = sum(layer.kernel == 3 and low <= layer.out_channels <= high for layer in layers)
        values = {
            named(row): row["of_matmul"][OURS] for row in layer_rows(result, FRACTION_BATCH)
            if row["kernel"] == 3 and low <= row["out_channels"] <= high and OURS in row["of_matmul"]
        }  # fmt: skip
        channels = f"{low}" if low == high else f"{low} to {high}"
        text = f"3x3, {channels} channels, batch {FRACTION_BATCH}: at least {needed:.0%} of the matmul ceiling"
        goals.append(at_least(text, values, expected, needed, "{:.0%}".format))
    return goals


def never_slower(result: Result, layers: list[FusedLayer], batch: int) -> dict:
    """The goal that backend="auto" is never slower than backend library (trivially so where it chooses library)."""
    rows = [row for row in layer_rows(result, batch) if row["auto"] in row["ms"]]
    values = {named(row): row["ms"]["library"] / row["ms"][row["auto"]] for row in rows}
    text = f"batch {batch}: no fused layer slower than cuDNN's convolution and one epilogue kernel"
    checked = at_least(text, values, len(layers), 1 - NOISE, "{:.2f}x as fast".format)
    if rows:
        checked["measured"] += f", {sum(row['auto'] == OURS for row in rows)} of them by {OURS}"
    return checked


def of_cudnn(result: Result, layers: list[FusedLayer], batch: int) -> dict:
    """The goal for backend native with its fused epilogue, relative to cuDNN's convolution without one."""
    rows = [row for row in layer_rows(result, batch) if "native" in row["ms"]]
    values = {named(row): row["ms"]["convolution"] / row["ms"]["native"] for row in rows}
    text = f"batch {batch}: fused layers of backend native at {OF_CUDNN:.0%} or more of cuDNN's bare convolution"
    return at_least(text, values, len(layers), OF_CUDNN, "{:.0%}".format)


def library_fraction(result: Result, layers: list[FusedLayer], batch: int) -> float | None:
    """The fraction of the matmul ceiling that cuDNN's convolutions reach over the plain network, weighted by time."""
    rows = [row for row in layer_rows(result, batch) if row["dilation"] == 1]
    if len(rows) < sum(layer.dilation == 1 for layer in layers):
        return None
    times = [row["count"] * row["ms"]["convolution"] for row in rows]
    return sum(time * row["of_matmul"]["convolution"] for time, row in zip(times, rows)) / sum(times)


def network(result: Result, text: str, batch: int, stride: int, needed: float, graphs: bool = False) -> dict:
    """The goal for the speed-up of the fastest atrous variant over PEER. graphs: count CUDA graph variants alone."""
    text = f"{text}, batch {batch}: at least {needed:g}x torch.compile(max-autotune)"
    for row in network_rows(result):
        ours = {name: ms for name, ms in row["ms"].items() if name.startswith("atrous" + "_" * graphs)}
        if (row["batch"], row["output_stride"], row["dtype"]) != (batch, stride, DTYPE) or PEER not in row["ms"]:
            continue
        if ours:
            best = min(ours, key=lambda name: ours[name])
            ratio = row["ms"][PEER] / ours[best]
            return goal(text, f"{ratio:.2f}x ({best})", ratio >= needed)
    return goal(text, "nothing", None)


def goals(result: Result, layers: list[FusedLayer]) -> list[dict[str, str]]:
    """Checks every goal. layers: those that a complete result has for one batch and dtype."""
    checked = matmul_fractions(result, layers)
    checked += [check(result, layers, batch) for check in (never_slower, of_cudnn) for batch in (1, 32, 256)]
    for batch in (32, 256):
        fraction = library_fraction(result, layers, batch)
        label = "an unknown fraction" if fraction is None else f"{fraction:.0%}"
        text = f"ResNet34, cuDNN's convolutions at {label} of the ceiling"
        needed = ABOVE if fraction is not None and fraction > CROSSING else BELOW
        checked.append(network(result, text, batch, 32, needed))
    checked.append(network(result, "ResNet34 under a CUDA graph", 1, 32, BATCH_1, graphs=True))
    checked += [network(result, "ResNet34 of output stride 8 at 512x512", batch, 8, DILATED) for batch in (1, 8)]
    return checked


def show(checked: list[dict[str, str]], device: str) -> list[str]:
    lines = [f"goals, set for an H100 (this is {device}):"]
    return lines + [f"  {row['state']:<13} {row['goal']}; measured: {row['measured']}" for row in checked]
