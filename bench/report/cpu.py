"""Markdown of the newest results file of `make bench`: what its pictures show, and its tables."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from bench.subjects.layers import ALONE
from bench.subjects.subject import OURS
from bench.summary import MEMORY_TITLE, SHORT, fraction, label, mean, megabytes

Result = dict[str, Any]
Row = dict[str, Any]


def newest(results: dict[str, Result]) -> str | None:
    """The name of the last results file of `make bench`; None if there is none."""
    named = [name for name, result in results.items() if name.startswith("cpu-") and result.get("rows")]
    return max(named, key=lambda name: (results[name]["date"], name), default=None)


def origin(result: Result) -> str:
    versions, peers = result["versions"], result["peers"]
    others = "".join(f", {name} {version}" for name, version in peers.items() if version and name != "onnx")
    return (
        f"{result['device']}, {result['capability']}, {result['threads']} threads; torch {versions['torch']}{others}; "
        f"{result['date']}"
    )


def caption(result: Result, name: str, pictures: list[Path]) -> str:
    """The README's pictures and the sentences below them."""
    ours, best = (mean(rows(result, "ResNet34", name, "float32")) for name in (f"{OURS} frozen", "compile, freezing"))
    text = (
        f"Both pictures show [{name}](bench/results/{name}) ({origin(result)}): speed-ups over eager NCHW in float32 "
        "(training: in the same dtype) of providers that take turns in one run, and each layer of ResNet34 beside the "
        "measured limits of the processor."
    )
    if ours and best:
        text += (
            f" In the geometric mean of the float32 networks, frozen `atrous` runs {ours:.2f}x as fast as eager, and "
            f"torch.compile with freezing {best:.2f}x."
        )
    text += f" {result['note']}" if "note" in result else ""
    images = ["![ResNet34 on a CPU: speed-ups over eager PyTorch]", "![Layers of ResNet34 below the CPU's limits]"]
    shown = [f"{image}({path.as_posix()})" for image, path in zip(images, pictures)]
    return "\n\n".join([*shown, textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)]) + "\n"


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
        return f"{row['median_ms']:.3f} ms, {fraction(row):.0%}; {fraction(alone[_key(row)]):.0%}"

    column = lambda row: f"batch {row['batch']}{SHORT[row['dtype']]}"  # noqa: E731
    tops = ", ".join(f"{name} {value:.0f}" for name, value in result["ceilings"].items())
    title = (
        f"Frozen layers: ms, and multiply-adds a second over the fastest product's; oneDNN's convolution alone ({tops})"
    )
    return ["", title + ":", "", *_table("", ours, lambda row: row["case"], column, cell)]


def _key(row: Row) -> tuple:
    return row["case"], row["dtype"], row["batch"]


def _table(title: str, rows: list[Row], left, top, cell) -> list[str]:
    """Markdown. left, top, cell: row -> the name of its line, of its column, and its text."""
    names, columns = (list(dict.fromkeys(map(key, rows))) for key in (left, top))
    known = {(left(row), top(row)): cell(row) for row in rows}
    lines = [[name, *(known.get((name, column), "") for column in columns)] for name in names]
    head = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return head + [f"| {' | '.join(line)} |" for line in lines]
