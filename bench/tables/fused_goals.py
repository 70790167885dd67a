"""The goals for an H100, and whether a result reaches them: a goal that a run was too short for is "not measured"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.tables.layers import Site

Result = dict[str, Any]
OURS, PEER = "triton", "compile_max_autotune"
DTYPE = "bfloat16"
SHARES = (((64, 64), 0.40), ((128, 512), 0.55))  # output channels of a 3x3 site -> share of the matrix ceiling
SHARE_BATCH = 256
NOISE = 0.02  # of two medians of one run: less is not slower
CROSSING = 0.60  # the share of the ceiling of the library's convolutions beyond which less is expected of us
ABOVE, BELOW = 1.15, 1.30  # over PEER, beyond CROSSING and up to it
BATCH_1, DILATED = 1.50, 1.30  # over PEER
OF_CUDNN = 0.70


def goal(text: str, measured: str, reached: bool | None) -> dict[str, str]:
    state = "not measured" if reached is None else "reached" if reached else "not reached"
    return {"goal": text, "measured": measured, "state": state}


def least(
    text: str, values: dict[str, float], expected: int, needed: float, form: Callable[[float], str], things="sites"
) -> dict:
    """The smallest value must be enough. One that is not decides even if others are missing."""
    if not values:
        return goal(text, "nothing", None)
    name = min(values, key=lambda key: values[key])
    measured = f"{form(values[name])} at the least ({name}); {len(values)} of {expected} {things}"
    enough = values[name] >= needed
    return goal(text, measured, enough if len(values) == expected or not enough else None)


def found(result: Result, batch: int) -> list[dict[str, Any]]:
    return [row for row in result.get("sites", []) if row["batch"] == batch and row["dtype"] == DTYPE]


def network_rows(result: Result) -> list[dict[str, Any]]:
    """Those of the three parts: what torch.compile makes has rows of its own, with eager beside it."""
    return [row for part in ("networks", "compiled", "max_autotune") for row in result.get(part, [])]


def named(row: dict[str, Any]) -> str:
    return f"{row['layer']} dilation {row['dilation']}"


def shares(result: Result, sites: list[Site]) -> list[dict]:
    goals = []
    for (low, high), needed in SHARES:
        expected = sum(site.kernel == 3 and low <= site.out_channels <= high for site in sites)
        values = {
            named(row): row["of_matmul"][OURS] for row in found(result, SHARE_BATCH)
            if row["kernel"] == 3 and low <= row["out_channels"] <= high and OURS in row["of_matmul"]
        }  # fmt: skip
        channels = f"{low}" if low == high else f"{low} to {high}"
        text = f"3x3 sites with {channels} channels, batch {SHARE_BATCH}: at least {needed:.0%} of the matrix ceiling"
        goals.append(least(text, values, expected, needed, "{:.0%}".format))
    return goals


def never_slower(result: Result, sites: list[Site], batch: int) -> dict:
    """Of what backend="auto" takes; where that is the library's convolution, the two are one."""
    rows = [row for row in found(result, batch) if row["auto"] in row["ms"]]
    values = {named(row): row["ms"]["library"] / row["ms"][row["auto"]] for row in rows}
    text = f"batch {batch}: no fused site slower than the library's convolution and one pointwise pass"
    checked = least(text, values, len(sites), 1 - NOISE, "{:.2f}x as fast".format)
    if rows:
        checked["measured"] += f", {sum(row['auto'] == OURS for row in rows)} of them by {OURS}"
    return checked


def of_cudnn(result: Result, sites: list[Site], batch: int) -> dict:
    """The convolution in C++ with all that is fused into it, beside the library's with nothing behind it."""
    rows = [row for row in found(result, batch) if "native" in row["ms"]]
    values = {named(row): row["ms"]["convolution"] / row["ms"]["native"] for row in rows}
    text = f"batch {batch}: fused sites of row native at {OF_CUDNN:.0%} or more of the library's bare convolution"
    return least(text, values, len(sites), OF_CUDNN, "{:.0%}".format)


def library_share(result: Result, sites: list[Site], batch: int) -> float | None:
    """The share of the ceiling that the library's convolutions reach over the whole plain network."""
    rows = [row for row in found(result, batch) if row["dilation"] == 1]
    if len(rows) < sum(site.dilation == 1 for site in sites):
        return None
    times = [row["count"] * row["ms"]["convolution"] for row in rows]
    return sum(time * row["of_matmul"]["convolution"] for time, row in zip(times, rows)) / sum(times)


def network(result: Result, text: str, batch: int, stride: int, needed: float, graphs: bool = False) -> dict:
    """The faster of our variants over PEER. graphs: only those under a CUDA graph count."""
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


def goals(result: Result, sites: list[Site]) -> list[dict[str, str]]:
    """sites: all that a complete result holds, for one batch and dtype."""
    checked = shares(result, sites)
    checked += [check(result, sites, batch) for check in (never_slower, of_cudnn) for batch in (1, 32, 256)]
    for batch in (32, 256):
        share = library_share(result, sites, batch)
        told = "an unknown share" if share is None else f"{share:.0%}"
        text = f"ResNet34, the library's convolutions at {told} of the ceiling"
        needed = ABOVE if share is not None and share > CROSSING else BELOW
        checked.append(network(result, text, batch, 32, needed))
    checked.append(network(result, "ResNet34 under a CUDA graph", 1, 32, BATCH_1, graphs=True))
    checked += [network(result, "ResNet34 of output stride 8 at 512x512", batch, 8, DILATED) for batch in (1, 8)]
    return checked


def show(checked: list[dict[str, str]], device: str) -> list[str]:
    lines = [f"goals, set for an H100 (this is {device}):"]
    return lines + [f"  {row['state']:<13} {row['goal']}; measured: {row['measured']}" for row in checked]
