"""Write what was measured into the README: python -m bench.report.report [README] [RESULTS_DIR]

The newest result of `make bench`, of `python -m atrous demo --json` for each processor, and of bench.tables.fused for
each GPU become tables between the report's two markers, and the pictures of `make bench` with their sentences stand
between two others, so that no number is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from atrous.tools.demo import report as demo_report
from bench.report import cpu
from bench.report import fused as report_fused
from bench.tables import table as measured

ROOT = Path(__file__).parents[2]
PICTURES = [Path("docs/resnet34-cpu.png"), Path("docs/resnet34-layers-cpu.png")]
PICTURE = re.compile(r"(<!-- pictures: begin -->\n).*?(<!-- pictures: end -->)", re.DOTALL)
BLOCK = re.compile(r"(<!-- report: begin -->\n).*?(<!-- report: end -->)", re.DOTALL)
FROZEN = {"atrous": "atrous_frozen", "atrous_cudagraph": "atrous_frozen_cudagraph"}  # in the demo's inference
RENAMED = {"kept_bytes_per_image": "saved_bytes_per_image", "atrous_keeping": "atrous_no_recompute"}  # old name -> new


def read(path: Path) -> dict[str, Any]:
    """A result; the keys of older files are read under their new names."""
    text = path.read_text()
    for old, new in RENAMED.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    result = json.loads(text)
    for row in (*result.get("inference", ()), *result.get("not_run", ())):  # in training "atrous" is not frozen
        row["variant"] = FROZEN.get(row["variant"], row["variant"])
    return result


def table(result: dict[str, Any], name: str) -> str:
    """One inference result as Markdown: speed-ups with the median times, under the name of the device."""
    cells, machine = demo_report.columns(result), demo_report.machine(result["device"])
    known = {(row["variant"], row["dtype"], row["batch"]): row for row in result["inference"]}
    lines = [
        f"{machine}; torch {result['versions']['torch']}; {result['date']}; [{name}](bench/results/{name}).",
        f"Speed-up over eager NCHW in {cells[0][0]} at the same batch, and the median time:",
        "",
        "| | " + " | ".join(f"{dtype}, batch {batch}" for dtype, batch in cells) + " |",
        "|---" * (len(cells) + 1) + "|",
    ]
    for variant in demo_report.variants(result):
        row = (known.get((variant, *cell)) for cell in cells)
        values = (_cell(r) if r else "not run" for r in row)
        lines.append(f"| {demo_report.label(variant)} | " + " | ".join(values) + " |")
    return "\n".join([*lines, *training(result)])


def _cell(row: dict[str, Any]) -> str:
    """Speed-up and milliseconds of a row of the demo; older files have no spread."""
    speed = f"{row['speedup_vs_eager']:.2f}x"
    if "spread" in row:
        speed = cpu.speed({"speedup": row["speedup_vs_eager"], **row})
    return f"{speed}; {row['median_ms']:.1f} ms"


def training(result: dict[str, Any]) -> list[str]:
    """The training step as Markdown: speed-up, time, and bytes saved for the backward; empty for older files."""
    if not result.get("training"):
        return []
    first, saved = result["training"][0], {row["variant"]: row["saved_bytes_per_image"] for row in result["memory"]}
    title = f"training step, {first['dtype']}, batch {first['batch']}"
    lines = ["", f"| {title} | over eager NCHW | MB per image saved for the backward |", "|---|---|---|"]
    for row in result["training"]:
        name = demo_report.TRAINING[row["variant"]].strip()
        name = name if not name.startswith("recompute") else f"atrous, {name}"
        lines.append(f"| {name} | {_cell(row)} | {saved[row['variant']] / 1e6:.1f} |")
    return lines


def folder_results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: read(path) for path in sorted(folder.glob("*.json"))}


def newest_demos(results: dict[str, dict[str, Any]]) -> list[str]:
    """The name of the last result of the demo for each device, as one processor under each instruction set."""
    dated = sorted((result["date"], name) for name, result in results.items() if result.get("inference"))
    return list({json.dumps(results[name]["device"], sort_keys=True): name for _, name in dated}.values())


def report(text: str, folder: Path) -> str:
    """The README with its report regenerated. Raises ValueError if the markers are missing."""
    results = folder_results(folder)
    last = cpu.newest(results)
    tables = [cpu.tables(results[last], last)] if last else []
    if last:
        shown = cpu.caption(results[last], last, PICTURES)
        text = PICTURE.sub(lambda markers: markers[1] + shown + markers[2], text)
    tables += [table(results[name], name) for name in newest_demos(results)]
    fused = {result["device"]: name for name, result in results.items() if "fused" in result.get("tables", {})}
    tables += [report_fused.tables(measured.of(results[name], "fused"), name) for name in fused.values()]
    if not BLOCK.search(text):
        raise ValueError("expected the lines <!-- report: begin --> and <!-- report: end -->, got none")
    middle = "\n\n".join(tables) + "\n" if tables else ""
    return BLOCK.sub(lambda markers: markers[1] + middle + markers[2], text)


def main(argv: list[str]) -> int:
    readme = Path(argv[0]) if argv else ROOT / "README.md"
    folder = Path(argv[1]) if len(argv) > 1 else ROOT / "bench" / "results"
    try:
        readme.write_text(report(readme.read_text(), folder))
    except (OSError, ValueError) as error:
        print(f"bench/report/report.py: {readme}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
