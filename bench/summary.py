"""The results as text of at most 100 columns: first every ratio with its spread, then times, memory and layers."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from atrous.tools.text_table import align, speedup, wrap
from atrous.tools.timing import LIMIT
from bench import rounds
from bench.subjects.layers import ALONE
from bench.subjects.subject import OURS

WIDTH, COLUMN = 100, 10
SHORT = {"float32": "", "bfloat16": " bf16"}
# The figures of bench.commands.memory, in MB
MEMORY = {"saved_mb": "saved for the backward", "allocated_mb": "peak of allocations", "peak_mb": "of resident memory"}
MEMORY_TITLE = f"training step, MB: {' / '.join(MEMORY.values())}"
TITLE = f"""Speed-up over the baseline, the first line of its table: the median of the rounds' ratios, ± half
the distance of their quartiles in percent. In parentheses, and not in the mean: above ±{100 * LIMIT:.0f} %.
error: the largest against fp64, as a multiple of plain torch's in the same dtype."""
Row = dict[str, Any]


def text(rows: list[Row], ceilings: dict[str, float]) -> str:
    timed = [row for row in rows if row["part"] not in ("memory", "layers")]
    parts = list(dict.fromkeys(row["part"] for row in timed))
    groups = {part: [row for row in timed if row["part"] == part] for part in parts}
    lines = [TITLE]
    for part, group in groups.items():
        lines += ["", part, *table(group, speed, extra=True), *exponents(group), *missing(group)]
    lines += ["", "Median milliseconds"]
    for part, group in groups.items():
        lines += ["", part, *table(group, lambda row: f"{row['median_ms']:.3g}")]
    lines += memory([row for row in rows if row["part"] == "memory"])
    lines += layers([row for row in rows if row["part"] == "layers" and "median_ms" in row], ceilings)
    return "\n".join(lines)


def label(row: Row) -> str:
    return row["provider"] + SHORT[row["dtype"]]


def speed(row: Row) -> str:
    return speedup(row["speedup"], row["spread"], row["counted"])


def mean(rows: list[Row]) -> float | None:
    """The geometric mean of the speed-ups that count."""
    counted = [row["speedup"] for row in rows if row.get("counted")]
    return statistics.geometric_mean(counted) if counted else None


def table(rows: list[Row], cell: Callable[[Row], str], extra: bool = False) -> list[str]:
    """A line for each provider and a column for each case, in as many tables as the width needs. extra: mean, error."""
    ran = [row for row in rows if "median_ms" in row]
    cases, names = (list(dict.fromkeys(map(key, ran))) for key in (lambda row: row["case"], label))
    known = {(label(row), row["case"]): cell(row) for row in ran}
    left = max(map(len, names), default=0)
    fit = (WIDTH - left - 2 * (COLUMN + 1)) // (COLUMN + 1)
    lines: list[str] = []
    for first in range(0, len(cases), fit):
        part = cases[first : first + fit]
        body = [["", *part]] + [[name, *(known.get((name, case), "") for case in part)] for name in names]
        if extra and part[-1] == cases[-1]:
            body = [line + more for line, more in zip(body, _extra(ran, names))]
        lines += align(body, [left, *[COLUMN] * (len(body[0]) - 1)], gap=" ")
    return lines


def _extra(rows: list[Row], names: list[str]) -> list[list[str]]:
    """The last two columns, with their heading: the geometric mean and the largest error."""
    columns = [["mean", "error"]]
    for name in names:
        mine = [row for row in rows if label(row) == name]
        errors = [row["error"] for row in mine if row.get("error") is not None]
        average = mean(mine)
        columns.append([f"{average:.2f}" if average else "", f"{max(errors):.2f}" if errors else ""])
    return columns


def missing(rows: list[Row]) -> list[str]:
    """A line for each reason why providers did not run."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if "reason" in row:
            reasons.setdefault(row["reason"], {})[label(row)] = None
    return [
        line for reason, names in reasons.items() for line in wrap(f"{', '.join(names)}: {reason}", WIDTH).split("\n")
    ]


def exponents(rows: list[Row]) -> list[str]:
    """For a sweep: a of time ~ size^a for each provider, and the size that is swept."""
    swept = [row for row in rows if row.get("x") and "median_ms" in row]
    lines = []
    for name in dict.fromkeys(map(label, swept)):
        mine = [row for row in swept if label(row) == name]
        if len(mine) > 1:
            power = rounds.exponent([row["x"] for row in mine], [row["median_ms"] for row in mine])
            lines.append(f"{name}: time ~ {mine[0]['axis']}^{power:.2f}")
    return lines


def memory(rows: list[Row]) -> list[str]:
    """The memory of a training step: what it saves for the backward, exact, and its peaks."""
    if not rows:
        return []
    cases, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "provider"))
    known = {(row["provider"], row["case"]): megabytes(row) for row in rows}
    body = [["", *cases]] + [[name, *(known.get((name, case), "") for case in cases)] for name in names]
    return ["", f"Memory of a {MEMORY_TITLE}", *align(body)]


def megabytes(row: Row) -> str:
    """The figures of MEMORY_TITLE."""
    return " / ".join(f"{row[name]:.0f}" for name in MEMORY)


def layers(rows: list[Row], ceilings: dict[str, float]) -> list[str]:
    """Ours and oneDNN's convolution alone for each layer, and ours as a fraction of the fastest product."""
    if not rows:
        return []
    columns = list(dict.fromkeys((row["dtype"], row["batch"]) for row in rows))
    names = dict.fromkeys(row["case"] for row in rows)
    known = {(row["case"], row["dtype"], row["batch"], row["provider"]): row for row in rows}
    head = [f"{SHORT[dtype].strip() or 'fp32'} b{batch}" for dtype, batch in columns]
    body = [["", *head]] + [[name, *(_layer(known, name, column) for column in columns)] for name in names]
    tops = ", ".join(f"{value:.0f} {unit(name)}" for name, value in ceilings.items())
    title = (
        f"Layers of ResNet34, times their number in the network: ms of {OURS} frozen, ms of {ALONE}, and the first's "
        "multiply-adds a second over those of the fastest product in the same rounds (Winograd multiplies less)."
    )
    total = ["network", *(_total(rows, column) for column in columns)]
    return ["", *wrap(title, WIDTH).split("\n"), f"Measured ceilings: {tops}", *align([*body, total])]


def unit(ceiling: str) -> str:
    """The unit of one of a results file's ceilings."""
    return "GB/s in a copy" if ceiling == "copy_gb_s" else f"GMAC/s in {ceiling.removeprefix('gmac_s_')}"


def fraction(row: Row) -> float:
    """The multiply-adds a second of a layer's row over those of the fastest product, the median of the rounds."""
    return row["speedup"] * row["macs"] / row["product_macs"]


def _layer(known: dict, name: str, column: tuple) -> str:
    ours, alone = (known.get((name, *column, provider)) for provider in (f"{OURS} frozen", ALONE))
    if not ours or not alone:
        return ""
    peak = f"{fraction(ours):.0%}"
    return f"{ours['median_ms']:.2f} {alone['median_ms']:.2f} {peak if ours['counted'] else f'({peak})':>6}"


def _total(rows: list[Row], column: tuple) -> str:
    mine = [row for row in rows if (row["dtype"], row["batch"]) == column]
    ms = [sum(r["median_ms"] * r["count"] for r in mine if r["provider"] == p) for p in (f"{OURS} frozen", ALONE)]
    return f"{ms[0]:.1f} {ms[1]:.1f}{'':7}"
