"""Bars: the speed-up of each provider over eager NCHW, a column of panels for each network, a row for each dtype."""

from __future__ import annotations

from typing import Any

from bench.report import cpu

# Okabe and Ito's palette, whose colours the colour-blind can tell apart; ours are the warm ones.
COLOURS = {
    "eager NCHW": "#bbbbbb", "eager NHWC": "#999999", "torch.compile": "#56b4e9", "compile, freezing": "#0072b2",
    "OpenVINO": "#009e73", "ONNX Runtime": "#cc79a7", "atrous": "#e69f00", "atrous frozen": "#d55e00",
}  # fmt: skip
DTYPES = {"float32": "float32", "bfloat16": "bfloat16"}
NETWORKS = ("ResNet34", "training step (bf16: autocast)")
TITLES = {"512 os8 b1": "512x512, b1\nstride 8"}


def draw(figure: Any, result: dict[str, Any]) -> None:
    """Draws into an empty figure of matplotlib."""
    rows = [row for part in NETWORKS for row in cpu.rows(result, part)]
    columns = list(dict.fromkeys(_column(row) for row in rows))
    known = {(_column(row), row["dtype"], row["provider"]): row for row in rows}
    shown = {dtype: [name for name in COLOURS if any((c, dtype, name) in known for c in columns)] for dtype in DTYPES}
    shown = {dtype: names for dtype, names in shown.items() if names}
    heights = [len(names) for names in shown.values()]
    panels = figure.subplots(len(shown), len(columns), squeeze=False, height_ratios=heights)
    for axes, column in zip(panels[0], columns):
        axes.set_title(column, fontsize=9, weight="bold")
    for line, (dtype, names) in zip(panels, shown.items()):
        top = max(row["speedup"] for row in rows if row["dtype"] == dtype)
        for axes, column in zip(line, columns):
            _panel(axes, [known.get((column, dtype, name)) for name in names], names, 1.55 * top)
            axes.tick_params(labelleft=axes is line[0], left=False)
        line[0].set_ylabel(dtype, fontsize=10, weight="bold")
    figure.suptitle("ResNet34: speed-up over eager NCHW in float32 (training: in the same dtype); longer is faster")


def _column(row: dict[str, Any]) -> str:
    """The title of a row's column; a step has one network in each dtype, which share a column."""
    if row["part"] != NETWORKS[0]:
        return "training, b8\nPReLU; bf16 ReLU"
    return TITLES.get(row["case"], f"{row['case'].replace(' b', ', b')}\n224x224")


def _panel(axes: Any, rows: list[dict[str, Any] | None], names: list[str], right: float) -> None:
    for position, (row, name) in enumerate(zip(rows, names)):
        if row is None:
            continue
        counted = row["counted"]
        text = f"{row['speedup']:.2f}" if counted else "noisy"
        if counted:
            axes.barh(position, row["speedup"], color=COLOURS[name], height=0.78)
        weight = "bold" if name.startswith("atrous") else "normal"
        place, box = row["speedup"] * counted + 0.02 * right, {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(place, position, text, va="center", fontsize=8.5, weight=weight, bbox=box)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_xticks([])
    axes.set(xlim=(0, right), ylim=(len(names) - 0.5, -0.5))
    axes.spines[["top", "right", "bottom"]].set_visible(False)
