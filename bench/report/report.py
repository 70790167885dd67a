"""Write the tables of what was measured into the README: python -m bench.report.report [README] [RESULTS_DIR]

Every result of `python -m atrous demo --json` in the folder, and the newest of fused_table.py for each GPU, become
tables between the report's two markers, so that no number is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from atrous.tools.demo import report as demo_report
from bench.report import fused as report_fused
from bench.tables import table as measured

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(<!-- report: begin -->\n).*?(<!-- report: end -->)", re.DOTALL)


def table(result: dict[str, Any], name: str) -> str:
    """Ratios first; the time stands beside them, under the name of its device."""
    device, versions, cells = result["device"], result["versions"], demo_report.columns(result)
    known = {(row["variant"], row["dtype"], row["batch"]): row for row in result["inference"]}
    more = f", {device['threads']} threads, {device['capability']}" if device["type"] == "cpu" else ""
    lines = [
        f"{device['name']}{more}; torch {versions['torch']}; {result['date']}; [{name}](bench/results/{name}).",
        f"Speed-up over eager NCHW in {cells[0][0]} at the same batch, and the median in milliseconds:",
        "",
        "| | " + " | ".join(f"{dtype}, batch {batch}" for dtype, batch in cells) + " |",
        "|---" * (len(cells) + 1) + "|",
    ]
    for variant in demo_report.variants(result):
        row = (known.get((variant, *cell)) for cell in cells)
        values = (f"{r['speedup_vs_eager']:.2f}x ({r['median_ms']:.1f})" if r else "not run" for r in row)
        lines.append(f"| {demo_report.label(variant)} | " + " | ".join(values) + " |")
    return "\n".join([*lines, *training(result)])


def training(result: dict[str, Any]) -> list[str]:
    """A step of SGD: speed-up, time, and what is kept for the backward. Older files have none."""
    if not result.get("training"):
        return []
    first, kept = result["training"][0], {row["variant"]: row["kept_bytes_per_image"] for row in result["memory"]}
    title = f"training step, {first['dtype']}, batch {first['batch']}"
    lines = ["", f"| {title} | over eager NCHW (ms) | MB an image kept for the backward |", "|---|---|---|"]
    for row in result["training"]:
        speed = f"{row['speedup_vs_eager']:.2f}x ({row['median_ms']:.1f})"
        name = demo_report.TRAINING[row["variant"]].strip()
        name = name if not name.startswith("recompute") else f"atrous, {name}"
        lines.append(f"| {name} | {speed} | {kept[row['variant']] / 1e6:.1f} |")
    return lines


def report(text: str, folder: Path) -> str:
    """The README with its report renewed. Raises ValueError where the markers are missing."""
    results = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    tables = [table(result, name) for name, result in results.items() if result.get("inference")]
    fused = {result["device"]: name for name, result in results.items() if "fused" in result.get("tables", {})}
    tables += [report_fused.tables(measured.of(results[name], "fused"), name) for name in fused.values()]
    if not BLOCK.search(text):
        raise ValueError("expected the lines <!-- report: begin --> and <!-- report: end -->, found none")
    middle = "\n\n".join(tables) + "\n" if tables else ""
    return BLOCK.sub(lambda found: found[1] + middle + found[2], text)


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
