"""Markdown tables of a bench.tables.fused result: fractions of the matmul ceiling by layer, speed-ups by network."""

from __future__ import annotations

from typing import Any

from bench.tables.fused_goals import OURS, network_rows
from bench.tables.fused_models import LABELS

Result = dict[str, Any]


def tables(result: Result, name: str) -> str:
    versions, top = result["versions"], result["ceilings"]
    lines = [
        f"{result['device']}; torch {versions['torch']}, triton {versions['triton']}, driver {result['driver']}; "
        f"{result['date']}; [{name}](bench/results/{name}).",
        f"Ceilings of the same run: {top['matmul_tflops']:.0f} TFLOP/s (bf16 matmul), "
        f"{top['copy_gb_s']:.0f} GB/s (copy).",
    ]
    for rows, table in ((result.get("layers", []), _layers), (network_rows(result), _networks)):
        if rows:
            lines += ["", *table(rows)]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose first column has no heading."""
    lines = [f"| {' | '.join(line)} |" for line in rows]
    return [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|", *lines]


def _layers(rows: list[dict[str, Any]]) -> list[str]:
    """The largest batch of the first dtype: one line per layer, one column per dilation."""
    dtype = rows[0]["dtype"]
    batch = max(row["batch"] for row in rows if row["dtype"] == dtype)
    selected = [row for row in rows if (row["dtype"], row["batch"]) == (dtype, batch) and OURS in row["ms"]]
    if not selected:
        return []
    dilations = sorted({row["dilation"] for row in selected})
    cells: dict[str, dict[int, str]] = {}
    for row in selected:
        fractions = [f"{row['of_matmul'][variant]:.0%}" for variant in (OURS, "convolution")]
        ratio = row["ms"]["library"] / row["ms"][OURS]
        cells.setdefault(_layer(row), {})[row["dilation"]] = f"{fractions[0]}, {fractions[1]}, {ratio:.2f}x"
    lines = [[layer, *(known.get(d, "") for d in dilations)] for layer, known in cells.items()]
    return [
        f"Fused layers of ResNet34 in {dtype} at batch {batch}: fraction of the matmul ceiling of `{OURS}`, that "
        "of cuDNN's convolution alone, and",
        f"the speed-up of `{OURS}` over `library` (cuDNN's convolution and one epilogue kernel):",
        "",
        *_table([f"dilation {dilation}" for dilation in dilations], lines),
    ]


def _layer(row: dict[str, Any]) -> str:
    kernel, size, stride = row["kernel"], row["size"], row["stride"]
    more = (", stride 2" if stride == 2 else "") + (", residual" if row["residual"] else "")
    return f"{kernel}x{kernel}, {row['in_channels']} to {row['out_channels']}, {size}x{size}{more}"


def _networks(rows: list[dict[str, Any]]) -> list[str]:
    """One column per network, sorted by size and batch. The first row with a variant counts; speed-ups are over eager
    of the same row."""
    columns: dict[str, list[dict[str, float]]] = {}
    for row in sorted(rows, key=lambda row: (row["size"], row["batch"])):
        columns.setdefault(_network(row), []).append(row["ms"])
    lines = [
        [label, *(_speed(next((ms for ms in column if variant in ms), {}), variant) for column in columns.values())]
        for variant, label in LABELS.items() if any(variant in row["ms"] for row in rows)
    ]  # fmt: skip
    return [
        f"ResNet34 in {rows[0]['dtype']}, inference: speed-up over eager NHWC, and the median in milliseconds:",
        "",
        *_table(list(columns), lines),
    ]


def _network(row: dict[str, Any]) -> str:
    stride = "" if row["output_stride"] == 32 else f", output stride {row['output_stride']}"
    return f"{row['size']}x{row['size']}{stride}, batch {row['batch']}"


def _speed(ms: dict[str, float], variant: str) -> str:
    return f"{ms['eager_channels_last'] / ms[variant]:.2f}x ({ms[variant]:.3g})" if variant in ms else "not run"
