"""Markdown of the newest results file of `make bench`: what its pictures show, and its tables."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from atrous.tools.text_table import plural
from bench import hardware
from bench.subjects.layers import ALONE
from bench.subjects.subject import OURS
from bench.summary import MEMORY_TITLE, SHORT, fraction, label, mean, megabytes, unit

Result = dict[str, Any]
Row = dict[str, Any]


LAYERS = "Layers of ResNet34 on a CPU: GMAC/s in % of those of the fastest matrix product"
EXCESS = (
    "A layer can exceed 100 %: Winograd's algorithm, which ours takes for 3x3 convolutions of stride 1, does fewer "
    "multiplications than the direct convolution that is counted, and oneDNN's direct convolution is in places faster "
    "than the fastest matrix product that was tried."
)
NAMES = "3x3/2 64>128 +r x4: kernel and stride, channels in and out, with a residual, four in the network."


def newest(results: dict[str, Result]) -> str | None:
    """The name of the last results file of `make bench`; None if there is none."""
    named = [name for name, result in results.items() if name.startswith("cpu-") and result.get("rows")]
    return max(named, key=lambda name: (results[name]["date"], name), default=None)


def origin(result: Result) -> str:
    versions, peers = result["versions"], result["peers"]
    others = "".join(f", {name} {version}" for name, version in peers.items() if version and name != "onnx")
    machine = f"{result['device']}, {result['capability']}, {plural(result['threads'], 'thread')}"
    if "hardware" in result:  # older files lack it
        machine += f", {hardware.text(result['hardware'])}"
    return f"{machine}; torch {versions['torch']}{others}; {result['date']}"


def caption(result: Result, name: str, pictures: list[Path]) -> str:
    """The README's pictures and the sentences below them."""
    text = (
        f"Both pictures show [{name}](bench/results/{name}) ({origin(result)}): speed-ups over eager NCHW in float32 "
        "(training: in the same dtype) of providers that take turns in one run, and the multiply-adds (MAC) a second "
        f"of each layer of ResNet34. {EXCESS}"
    )
    text += _means(result, f"{OURS} frozen", "compile, freezing")
    text += f" {result['note']}" if "note" in result else ""
    images = [f"![{what}]" for what in ("ResNet34 on a CPU: speed-ups over eager PyTorch", LAYERS)]
    shown = [f"{image}({path.as_posix()})" for image, path in zip(images, pictures)]
    return "\n\n".join([*shown, textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)]) + "\n"


def _means(result: Result, ours: str, other: str) -> str:
    """A sentence with the geometric means of two providers over the networks where both were measured without noise."""
    counted = {name: _counted(result, name) for name in (ours, other)}
    both = counted[ours].keys() & counted[other].keys()
    if not both:
        return ""
    means = [mean([counted[name][case] for case in both]) for name in (ours, other)]
    return (
        f" Frozen `atrous` runs {means[0]:.2f}x as fast as eager, and torch.compile with freezing {means[1]:.2f}x, in "
        f"the geometric mean of the {len(both)} float32 networks where neither was noisy."
    )


def _counted(result: Result, provider: str) -> dict[str, Row]:
    """The provider's float32 networks without noise, by name."""
    return {row["case"]: row for row in rows(result, "ResNet34", provider, "float32") if row["counted"]}


def rows(result: Result, part: str, provider: str = "", dtype: str = "") -> list[Row]:
    """The rows of a part that ran, by default of every provider and dtype."""
    ran = [row for row in result["rows"] if row["part"] == part and "median_ms" in row]
    return [row for row in ran if provider in ("", row["provider"]) and dtype in ("", row["dtype"])]


def tables(result: Result, name: str) -> str:
    """Every table of a results file."""
    parts = dict.fromkeys(row["part"] for row in result["rows"] if row["part"] not in ("memory", "layers"))
    lines = [f"{origin(result)}; [{name}](bench/results/{name}).", "Speed-up over the first line, and its spread:"]
    for part in parts:
        lines += ["", *_table(part, rows(result, part), label, lambda row: row["case"], speed)]
    memory = [row for row in result["rows"] if row["part"] == "memory"]
    if memory:
        lines += ["", *_table(MEMORY_TITLE, memory, lambda row: row["provider"], lambda row: row["case"], megabytes)]
    return "\n".join([*lines, *_layers(result)])


def speed(row: Row) -> str:
    text = f"{row['speedup']:.2f}x ± {100 * row['spread']:.0f} %"
    return text if row["counted"] else f"({text})"


def _layers(result: Result) -> list[str]:
    """Ours and oneDNN's convolution alone in each layer, as fractions of the fastest product."""
    layers = rows(result, "layers")
    ours = [row for row in layers if row["provider"] == f"{OURS} frozen"]
    alone = {_key(row): row for row in layers if row["provider"] == ALONE}
    if not ours:
        return []

    def cell(row: Row) -> str:
        return f"{row['median_ms']:.3f} ms, {_percent(row)}; {_percent(alone[_key(row)])}"

    column = lambda row: f"batch {row['batch']}{SHORT[row['dtype']]}"  # noqa: E731
    tops = ", ".join(f"{value:.0f} {unit(name)}" for name, value in result["ceilings"].items())
    title = (
        "Frozen layers: ms, and multiply-adds a second in % of those of the fastest matrix product; behind the "
        f"semicolon those of oneDNN's convolution alone. {NAMES} In parentheses: noisy. Measured limits: {tops}."
    )
    return ["", title, "", *_table("", ours, lambda row: row["case"], column, cell)]


def _percent(row: Row) -> str:
    text = f"{fraction(row):.0%}"
    return text if row["counted"] else f"({text})"


def _key(row: Row) -> tuple:
    return row["case"], row["dtype"], row["batch"]


def _table(title: str, rows: list[Row], left, top, cell) -> list[str]:
    """Markdown. left, top, cell: row -> the name of its line, of its column, and its text."""
    names, columns = (list(dict.fromkeys(map(key, rows))) for key in (left, top))
    known = {(left(row), top(row)): cell(row) for row in rows}
    lines = [[name, *(known.get((name, column), "") for column in columns)] for name in names]
    head = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return head + [f"| {' | '.join(line)} |" for line in lines]
