"""A run of .ci/gpu as Markdown, beside the last committed file of the same GPU.

    python -m bench.gpu.summary RESULTS_DIR [COMMITTED_DIR]     (default bench/results)

For each variant of each table: over the rows that both files have, the geometric mean of the committed time over this
one (above 1: faster now), and the row that lost the most. Needs neither torch nor a GPU.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench import record  # noqa: E402

Times = dict[tuple[str, str], dict[str, float]]  # (table and part, variant) -> row -> milliseconds
NO_NAME = ("count", "auto", "config", "partial", "tuned")  # of a row: what was chosen or counted, not what it is


def files(folder: Path) -> list[tuple[str, Path, dict[str, Any]]]:
    """Those of .ci/gpu, the newest last."""
    found = [(path, record.read(path)) for path in sorted(folder.glob("*.json"))]
    return sorted((held["date"], path, held) for path, held in found if "tables" in held and held.get("phases"))


def times(run: dict[str, Any]) -> Times:
    found: Times = defaultdict(dict)
    for kind, table in run["tables"].items():
        for part, rows in table.items():
            for row in rows if isinstance(rows, list) else []:
                for variant, ms in measured(row):
                    found[f"{kind}, {part}", variant][name(row)] = ms
    return found


def measured(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """variant, milliseconds; a row of goals or of what was not run has none."""
    ms = row.get("ms")
    if isinstance(ms, dict):
        yield from ms.items()
    elif ms is not None:
        yield row.get("variant", row.get("pass", "")), ms


def name(row: dict[str, Any]) -> str:
    """What tells a row from the others of its part: its words and whole numbers."""
    return ", ".join(f"{key} {row[key]}" for key in row if isinstance(row[key], (str, int)) and key not in NO_NAME)


def compared(here: Times, before: Times) -> Iterator[list[str]]:
    for (part, variant), rows in here.items():
        known = before.get((part, variant), {})
        ratios = {row: known[row] / ms for row, ms in rows.items() if row in known}
        both = f"{len(ratios)} of {len(rows)}"
        if not ratios:
            yield [part, variant, both, f"{sum(rows.values()):.4g}", "-", "-", "-"]
            continue
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        worst = min(ratios, key=lambda row: ratios[row])
        spent = (f"{sum(values[row] for row in ratios):.4g}" for values in (rows, known))
        yield [part, variant, both, *spent, f"{mean:.2f}x", f"{ratios[worst]:.2f}x: {worst}"]


def steps(run: dict[str, Any]) -> Iterator[list[str]]:
    for phase, held in run["phases"].items():
        for step in held["steps"]:
            told = [step.get(f"gpu_{when}") or {} for when in ("before", "during", "after")]
            sensors = (", ".join(gpu.get(key, "-") for gpu in told) for key in ("sm_mhz", "celsius"))
            spent = f"{step.get('seconds', 0):.1f} of {step['limit_s']}"
            yield [phase, step["name"], step["state"], spent, *sensors, step.get("reason", "")]


def markdown(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:], ""]


def source(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{key} {value}" for key, value in run["versions"].items())
    return f"driver {run['driver']}, {versions}, commit {run['commit']}, {run['date']}"


def summary(run: dict[str, Any], before: dict[str, Any] | None) -> str:
    lines = [f"## {run['device']}", "", source(run), ""]
    lines += [f"Beside the last committed file of this GPU: {source(before)}" if before else "No file of this GPU is "
              "committed yet.", ""]  # fmt: skip
    head = ["phase", "step", "state", "seconds", "SM MHz before, during, after", "degrees C", ""]
    lines += markdown(head, steps(run))
    ceilings, known = run.get("ceilings", {}), (before or {}).get("ceilings", {})
    rows = ([key, f"{value:.4g}", f"{known[key]:.4g}" if key in known else "-"] for key, value in ceilings.items())
    lines += markdown(["ceiling", "here", "committed"], rows)
    head = ["table", "variant", "rows in both", "ms here", "ms committed", "committed / here", "the row that lost most"]
    return "\n".join(lines + markdown(head, compared(times(run), times(before) if before else {})))


def main(argv: list[str]) -> int:
    if not 1 <= len(argv) <= 2:
        print("summary.py: expected RESULTS_DIR [COMMITTED_DIR]", file=sys.stderr)
        return 2
    found = files(Path(argv[0]))
    if not found:
        print(f"summary.py: {argv[0]}: expected a file that .ci/gpu wrote, found none", file=sys.stderr)
        return 2
    _, path, run = found[-1]
    committed = files(Path(argv[1]) if len(argv) > 1 else record.ROOT / "bench" / "results")
    same = [held for _, other, held in committed if held["device"] == run["device"] and not path.samefile(other)]
    print(summary(run, same[-1] if same else None))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
