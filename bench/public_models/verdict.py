"""One model's row of the results: what is not as it should be, and its figures as text."""

from __future__ import annotations

from typing import Any

LARGEST_ERROR = 1e-9  # relative, in fp64
CONDITION = 10.0  # or this times what the last bits of the input change in the plain model
NOISE = 1.05  # a model is slower above this times the longer of two measurements of plain
ERRORS = (("eval", "output"), ("frozen", "output"), ("training", "output"), ("training", "gradient"),
          ("training", "buffer"))  # fmt: skip
Row = dict[str, Any]


def unfinished(row: Row) -> list[str]:
    """The steps that raised, or the way in which the process ended."""
    steps = [f"{name}: {step['error']}" for name, step in row.items() if isinstance(step, dict) and "error" in step]
    return [*steps, *([row["died"]] if "died" in row else [])]


def wrong(row: Row) -> list[str]:
    lines = []
    for step, value in ERRORS:
        error, own = row.get(step, {}).get(value), row.get(step, {}).get("rounding", {}).get(value, 0.0)
        if error is not None and not error <= max(LARGEST_ERROR, CONDITION * own):
            lines.append(f"{value} in {step} is off by {error:.1e}")
    return lines


def slower(row: Row) -> list[str]:
    ms = row.get("time", {})
    if "fused" not in ms or ms["fused"] <= NOISE * max(ms["plain"], ms["again"]):
        return []
    return [f"slower: {ms['fused']:.3g} ms, plain {ms['plain']:.3g} ms and {ms['again']:.3g} ms"]


def missed(row: Row) -> list[str]:
    """The convolutions that are not fused with both, in the first step that misses them, with the reason."""
    steps = {name: row.get(name, {}).get("missed", {}) for name in ("eval", "frozen", "training")}
    every = [(path, reason) for step in steps.values() for path, reason in step.items()]
    return [f"{path} is not fused with both ({reason})" for path, reason in dict.fromkeys(every)]


def unexplained(row: Row) -> list[str]:
    """Convolutions that the report lacks, and chains that end without a reason."""
    report = row.get("eval", {})
    if "listed" not in report:
        return []
    lacking = count(row, "counted", "convolutions") - report["listed"]
    silent = report["reasons"].get("none given", 0)
    sentences = {"convolutions are not in the report": lacking, "chains end without a reason": silent}
    return [f"{number} {sentence}" for sentence, number in sentences.items() if number > 0]


def faults(row: Row) -> list[str]:
    return [*unfinished(row), *wrong(row), *slower(row), *unexplained(row), *missed(row)]


def count(row: Row, step: str, name: str) -> int:
    return row.get(step, {}).get(name, 0)


def events(row: Row, kind: str) -> int:
    """The number of graph breaks ("breaks"), or of calls that ran the plain model ("plain"), in eval and training."""
    return sum(sum(row.get(step, {}).get(kind, {}).values()) for step in ("eval", "training"))


def digits(row: Row, step: str, value: str) -> str:
    e = row.get(step, {}).get(value)
    return "" if e is None else "0" if e == 0.0 else f"{e:.0e}".replace("e-0", "e-")


def ratio(row: Row) -> str:
    ms = row.get("time", {})
    return f"{ms['fused'] / ms['plain']:.2f}x" if "fused" in ms else ""


def both(row: Row) -> str:
    """The number in eval, of all; that of another step, if it differs."""
    done = [name for name in ("eval", "frozen", "training") if "sites" in row.get(name, {})]
    steps = {name: count(row, name, "activated") for name in done}
    others = [f"{name} {number}" for name, number in steps.items() if number != steps.get("eval")]
    more = f" ({', '.join(others)})" if others else ""
    return f"{steps.get('eval', '-')} of {count(row, 'counted', 'activated')}{more}"


def seconds(row: Row) -> float:
    return sum(step.get("seconds", 0.0) for step in row.values() if isinstance(step, dict))


def line(name: str, row: Row) -> str:
    """One model on the terminal."""
    errors = " ".join(digits(row, *pair) or "-" for pair in ERRORS)
    parts = [
        f"{seconds(row):.0f} s", f"{count(row, 'counted', 'convolutions')} convolutions",
        f"{count(row, 'eval', 'sites')} sites", f"with both {both(row)}", f"errors {errors}",
        f"{events(row, 'breaks')} breaks", f"{events(row, 'plain')} plain calls", ratio(row), *faults(row),
    ]  # fmt: skip
    return f"{name}: {', '.join(parts)}"
