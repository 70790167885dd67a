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

from bench.public_models.verdict import (
    ERRORS,
    LARGEST_ERROR,
    NOISE,
    Row,
    both,
    count,
    digits,
    events,
    faults,
    ratio,
    slower,
    unfinished,
    wrong,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "models.md", ROOT / "bench" / "results"
INTRODUCTION = """\
# fuse() on models of public libraries

`make public-models` measures this, each model in a process of its own; `make bench-report` writes the page. The models
are small members of their families, with random weights, in `bench/public_models/zoo.py`; images are small, batch 2.
The convolutions that have a BatchNorm and then, with or without an addition between, a ReLU, LeakyReLU, PReLU or RReLU
behind them are counted in the operators that eager torch runs (`bench/public_models/chains.py`), without fuse().

- with both: of these, those whose call has the BatchNorm and the activation; two whose sum is activated count once.
- errors: the largest difference from the plain model in fp64, relative to the tensor's largest value (a gradient's at
  least 0.001 of all gradients' largest), called the same way from the same seed. Above {limit:.0e} a model is wrong,
  unless the last bits of the input change as much in the plain model (a BatchNorm over two values, say).
- time: an eval call in fp32, one thread, fused over plain, the shortest of calls that alternate. A model is slower if
  it took more than {noise} times the longer of two measurements of the plain model.
- breaks, plain calls: graph breaks, and calls that ran the plain model, of one call in eval and one in training.
- Dropout has p = 0 here, because behind a site it draws other numbers than torch's; drop path stays as it is.
"""
Models = dict[str, Row]


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |"


def totals(models: Models) -> Iterator[str]:
    """One line a library, and their sum."""
    counts = ("models", "convolutions", "sites", "with both", "", "wrong", "unfinished", "slower")
    head = ("library", *counts, "breaks", "plain calls")
    rows = []
    for library in [*dict.fromkeys(row["library"] for row in models.values()), "all"]:
        own = [row for row in models.values() if library in (row["library"], "all")]

        def total(number: Callable[[Row], Any], own: list[Row] = own) -> int:
            return sum(number(row) for row in own)

        fused, every = total(lambda r: count(r, "eval", "activated")), total(lambda r: count(r, "counted", "activated"))
        rows.append((
            library, len(own), total(lambda r: count(r, "counted", "convolutions")),
            total(lambda r: count(r, "eval", "sites")), f"{fused} of {every}", f"{fused / every:.1%}" if every else "",
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
        yield from (f"- {name}: {sentence}" for sentence in faults(row))


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
    models = dict(sorted(result["models"].items(), key=lambda entry: entry[0].lower()))
    versions = result["versions"]
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
