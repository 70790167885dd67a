"""Print a run of .ci/gpu as Markdown, compared with the last committed file of the same GPU.

    python -m bench.gpu.summary RESULTS_DIR [COMMITTED_DIR]     (default bench/results)

For each variant of each table, over the rows in both files: the geometric mean of committed time over new time (above
1: faster now), and the row with the largest slowdown. Needs neither torch nor a GPU.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench import record

Times = dict[tuple[str, str], dict[str, float]]  # (table and part, variant) -> row -> milliseconds
NO_NAME = ("count", "auto", "config", "partial", "lost", "tuned")  # keys that do not identify a row


def files(folder: Path) -> list[tuple[str, Path, dict[str, Any]]]:
    """The result files of .ci/gpu as (date, path, contents), the newest last."""
    records = [(path, record.read(path)) for path in sorted(folder.glob("*.json"))]
    return sorted((run["date"], path, run) for path, run in records if "tables" in run and run.get("phases"))


def times(run: dict[str, Any]) -> Times:
    result: Times = defaultdict(dict)
    for kind, table in run["tables"].items():
        for part, rows in table.items():
            for row in rows if isinstance(rows, list) else []:
                for variant, ms in measured(row):
                    result[f"{kind}, {part}", variant][name(row)] = ms
    return result


def measured(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (variant, milliseconds); goals and "not_run" entries have none."""
    ms = row.get("ms")
    if isinstance(ms, dict):
        yield from ms.items()
    elif ms is not None:
        yield row.get("variant", row.get("pass", "")), ms


def name(row: dict[str, Any]) -> str:
    """The string and integer values that identify a row within its part."""
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
    for phase, entry in run["phases"].items():
        for step in entry["steps"]:
            samples = [step.get(f"gpu_{when}") or {} for when in ("before", "during", "after")]
            sensors = (", ".join(gpu.get(key, "-") for gpu in samples) for key in ("sm_mhz", "celsius"))
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
    old = f"Compared with the last committed file of this GPU: {source(before)}" if before else ""
    lines += [old or "No file of this GPU is committed yet.", ""]
    head = ["phase", "step", "state", "seconds", "SM MHz before, during, after", "degrees C", ""]
    lines += markdown(head, steps(run))
    ceilings, known = run.get("ceilings", {}), (before or {}).get("ceilings", {})
    rows = ([key, f"{value:.4g}", f"{known[key]:.4g}" if key in known else "-"] for key, value in ceilings.items())
    lines += markdown(["ceiling", "here", "committed"], rows)
    head = ["table", "variant", "rows in both", "ms here", "ms committed", "committed / here", "largest slowdown"]
    return "\n".join(lines + markdown(head, compared(times(run), times(before) if before else {})))


def main(argv: list[str]) -> int:
    if not 1 <= len(argv) <= 2:
        print("summary.py: expected RESULTS_DIR [COMMITTED_DIR]", file=sys.stderr)
        return 2
    runs = files(Path(argv[0]))
    if not runs:
        print(f"summary.py: {argv[0]}: expected a file that .ci/gpu wrote, got none", file=sys.stderr)
        return 2
    _, path, run = runs[-1]
    committed = files(Path(argv[1]) if len(argv) > 1 else record.ROOT / "bench" / "results")
    same = [old for _, other, old in committed if old["device"] == run["device"] and not path.samefile(other)]
    print(summary(run, same[-1] if same else None))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
