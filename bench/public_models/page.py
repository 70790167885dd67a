"""Writes docs/models.md from the newest bench/results/public-models-<date>.json.

python -m bench.public_models.page [PAGE] [RESULTS_DIR]
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "models.md", ROOT / "bench" / "results"
LARGEST_ERROR = 1e-9  # relative, in fp64
NOISE = 1.05  # a model is slower above this times the longer of two measurements of plain
ERRORS = (("eval", "output"), ("frozen", "output"), ("training", "output"), ("training", "gradient"),
          ("training", "buffer"))  # fmt: skip
INTRODUCTION = """\
# fuse() on models of public libraries

`make public-models` measures this, each model in a process of its own; `make bench-report` writes the page. The models
are small members of their families, with random weights, in `bench/public_models/zoo.py`; images are small, batch 2.
The convolutions that have a BatchNorm and then, with or without an addition between, a ReLU, LeakyReLU, PReLU or RReLU
behind them are counted in the operators that eager torch runs (`bench/public_models/chains.py`), without fuse().

- with both: of these, those whose call has the BatchNorm and the activation; two whose sum is activated count once.
- errors: the largest difference from the plain model in fp64, relative to the tensor's largest value (a gradient's at
  least 0.001 of all gradients' largest), called the same way from the same seed. Above {limit:.0e} a model is wrong.
- time: an eval call in fp32, one thread, fused over plain, the shortest of calls that alternate. A model is slower if
  it took more than {noise} times the longer of two measurements of the plain model.
- breaks, plain calls: graph breaks, and calls that ran the plain model, of one call in eval and one in training.
- Dropout has p = 0 here, because behind a site it draws other numbers than torch's; drop path stays as it is.
"""
Row = dict[str, Any]
Models = dict[str, Row]


def unfinished(row: Row) -> list[str]:
    """The steps that raised, or the way in which the process ended."""
    steps = [f"{name}: {step['error']}" for name, step in row.items() if isinstance(step, dict) and "error" in step]
    return [*steps, *([row["died"]] if "died" in row else [])]


def wrong(row: Row) -> list[str]:
    errors = {f"{value} in {step}": row.get(step, {}).get(value) for step, value in ERRORS}
    return [f"{name} is off by {e:.1e}" for name, e in errors.items() if e is not None and not e <= LARGEST_ERROR]


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
    lacking = (
        count(row, "counted", "convolutions") - count(row, "eval", "listed") if "listed" in row.get("eval", {}) else 0
    )
    silent = row.get("eval", {}).get("reasons", {}).get("none given", 0)
    return [f"{number} {what}" for number, what in ((lacking, "convolutions are not in the report"),
            (silent, "chains end without a reason")) if number > 0]  # fmt: skip


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
        f"{events(row, 'breaks')} breaks", f"{events(row, 'plain')} plain calls", ratio(row),
        *unfinished(row), *wrong(row), *slower(row), *unexplained(row), *missed(row)[:3],
    ]  # fmt: skip
    return f"{name}: {', '.join(parts)}"


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |"


def totals(models: Models) -> Iterator[str]:
    """One line a library, and their sum."""
    head = (
        "library",
        "models",
        "convolutions",
        "sites",
        "with both",
        "",
        "wrong",
        "unfinished",
        "slower",
        "breaks",
        "plain calls",
    )
    rows = []
    for library in [*dict.fromkeys(row["library"] for row in models.values()), "all"]:
        own = [row for row in models.values() if library in (row["library"], "all")]

        def total(number: Callable[[Row], Any], own: list[Row] = own) -> int:
            return sum(number(row) for row in own)

        fused, every = total(lambda r: count(r, "eval", "activated")), total(lambda r: count(r, "counted", "activated"))
        rows.append((
            library, len(own), total(lambda r: count(r, "counted", "convolutions")),
            total(lambda r: count(r, "eval", "sites")), f"{fused} of {every}", f"{fused / max(every, 1):.1%}",
            total(lambda r: bool(wrong(r))), total(lambda r: bool(unfinished(r))), total(lambda r: bool(slower(r))),
            total(lambda r: events(r, "breaks")), total(lambda r: events(r, "plain")),
        ))  # fmt: skip
    return table(head, rows)


def library(models: Models) -> Iterator[str]:
    """One line a model."""
    errors = (f"{step}, {value}" for step, value in ERRORS)
    head = ("model", "convolutions", "sites", "with both", *errors, "breaks", "plain calls", "time")
    return table(head, [
        (name.partition(" ")[2], count(row, "counted", "convolutions"), count(row, "eval", "sites"), both(row),
         *(digits(row, *pair) for pair in ERRORS), events(row, "breaks") or "", events(row, "plain") or "", ratio(row))
        for name, row in models.items()
    ])  # fmt: skip


def findings(models: Models) -> Iterator[str]:
    """Every model that does not do as it should."""
    for name, row in models.items():
        for sentence in (*unfinished(row), *wrong(row), *slower(row), *unexplained(row), *missed(row)):
            yield f"- {name}: {sentence}"


def ends(models: Models) -> Iterator[str]:
    """Why the chains of convolutions end without an activation, by reason."""
    convolutions: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for row in models.values():
        reasons = row.get("eval", {}).get("reasons", {})
        convolutions.update(reasons)
        inside.update(reasons.keys())
    rows = [(reason, number, inside[reason]) for reason, number in convolutions.most_common()]
    return table(("why the chain ends", "convolutions", "models"), rows)


def text(result: Row, name: str) -> str:
    models, versions = result["models"], result["versions"]
    shown = ", ".join(f"{key} {value}" for key, value in versions.items() if value and key not in ("cuda", "cudnn"))
    lines = [
        INTRODUCTION.format(limit=LARGEST_ERROR, noise=NOISE),
        f"{result['device']}; {shown}; {result['date']}; [{name}](../bench/results/{name}).",
        "", "## Totals", "", *totals(models),
        "", "## Why chains end", "", "In eval, the convolutions that are not fused with an activation:", "",
        *ends(models),
        "", "## Models that do not do as they should", "", *(list(findings(models)) or ["None."]),
    ]  # fmt: skip
    for title in dict.fromkeys(row["library"] for row in models.values()):
        lines += ["", f"## {title}", "", *library({n: r for n, r in models.items() if r["library"] == title})]
    return "\n".join(lines) + "\n"


def newest(folder: Path) -> Path:
    return max(folder.glob("public-models-*.json"))


def main(argv: list[str]) -> int:
    page, folder = Path(argv[0]) if argv else PAGE, Path(argv[1]) if len(argv) > 1 else RESULTS
    path = newest(folder)
    page.write_text(text(json.loads(path.read_text()), path.name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
