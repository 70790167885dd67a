"""Writes docs/models.md from the newest bench/results/public-models-<date>.json: python -m bench.public_models.page"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "models.md", ROOT / "bench" / "results"
LARGEST_ERROR = 1e-9  # relative, in fp64
NOISE = 1.03  # a model is slower if three quarters of the ratios are above it
ERRORS = (("eval", "output"), ("frozen", "output"), ("training", "output"), ("training", "gradient"),
          ("training", "buffer"))  # fmt: skip
Row = dict[str, Any]


def broken(row: Row) -> list[str]:
    """Steps that raised, or the way in which the process ended."""
    steps = [f"{name}: {step['error']}" for name, step in row.items() if isinstance(step, dict) and "error" in step]
    return [*steps, *([row["died"]] if "died" in row else [])]


def wrong(row: Row) -> list[str]:
    errors = {f"{value} in {step}": row.get(step, {}).get(value) for step, value in ERRORS}
    return [f"{name} is off by {e:.1e}" for name, e in errors.items() if e is not None and not e <= LARGEST_ERROR]


def slower(row: Row) -> bool:
    return row.get("time", {}).get("ratios", [0.0])[0] > NOISE


def line(name: str, row: Row) -> str:
    """One model on the terminal."""
    counted, found = row.get("counted", {}), row.get("eval", {})
    both = [row.get(step, {}).get("activated", "-") for step in ("eval", "frozen", "training")]
    errors = [row.get(step, {}).get(value) for step, value in ERRORS]
    digits = ["-" if e is None else f"{e:.0e}" for e in errors]
    ratio = row.get("time", {}).get("ratios")
    parts = [
        f"{row['seconds']:.0f} s", f"convolutions {counted.get('convolutions', '-')}",
        f"sites {found.get('sites', '-')}",
        f"with activation {both} of {counted.get('activated', '-')}", f"errors {' '.join(digits)}",
        f"breaks {sum(found.get('breaks', {}).values())}", f"time {[round(r, 2) for r in ratio] if ratio else '-'}",
        *broken(row), *wrong(row), *(["SLOWER"] if slower(row) else []),
    ]  # fmt: skip
    return f"{name}: {', '.join(parts)}"
