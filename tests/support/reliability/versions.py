"""Runs tests of the functions and of fuse() with one wheel of each Python in several versions of torch.

    python -m reliability.versions [--versions "3.11/2.13.0 3.12/2.14.1"] [--json FILE] [--keep]

A wheel is built once for each Python, with its oldest torch that can be had, and the same file is installed into an
environment of each torch. What cannot be had here is a row with the reason. The results of a combination replace
earlier ones in the file of the day, bench/results/versions-<date>.json.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from reliability import environments
from reliability.environments import DRAWN, FOLDERS, ROOT, Combination, Missing, Row

from bench import record
from bench.public_models.page import table as markdown

RESULTS = ROOT / "bench" / "results"
PYTHONS, TORCHES = ("3.10", "3.11", "3.12", "3.13"), ("2.11.0", "2.13.0", "2.14.1")
ALL = [Combination(*pair) for pair in itertools.product(PYTHONS, TORCHES)]


def measured(combinations: Sequence[Combination], keep: bool = False) -> Iterator[Row]:
    """Yields a row of each combination, the oldest torch of each Python first."""
    ordered = sorted(combinations, key=lambda one: one.order)
    for _, group in itertools.groupby(ordered, key=lambda one: one.python):
        wheel = None
        for combination in group:
            row: Row = combination._asdict()
            try:
                environments.create(combination)
                wheel = wheel or environments.build(combination)
                row |= environments.install(combination, wheel) | environments.test(combination)
            except Missing as reason:
                row["missing"] = str(reason)
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
                row["error"] = str(error).splitlines()[0]
            yield row
            if not keep:
                environments.remove(combination)  # gigabytes


def cell(row: Row | None) -> str:
    """The result of one combination, in words."""
    if row is None:
        return "not run"
    if "missing" in row or "error" in row:
        return "not available here" if "missing" in row else f"fails: {row['error']}"
    failed = f"**{row['failed']} failed**, " if row["failed"] else ""
    return f"{failed}{row['passed']} passed, {row['skipped']} skipped"


def table(path: Path) -> list[str]:
    """A results file as lines of Markdown: a line for each Python, a column for each torch, then what is missing."""
    rows = {(row["python"], row["torch"]): row for row in record.read(path)["rows"]}
    pythons, torches = (sorted(set(names), key=_number) for names in zip(*rows))
    head = ("Python", *(f"torch {name}" for name in torches))
    lines = list(markdown(head, [(p, *(cell(rows.get((p, t))) for t in torches)) for p in pythons]))
    notes = [
        *(f"- Python {p}, torch {t} is not available here: {r['missing']}" for (p, t), r in rows.items()
          if "missing" in r),
        *(f"- Python {p}, torch {t} fails: `{name}`" for (p, t), r in rows.items() for name in r.get("failures", ())),
    ]  # fmt: skip
    return [*lines, "", *notes] if notes else lines


def described(path: Path) -> str:
    """A sentence for the table: which tests ran, with which wheels, and where."""
    result = record.read(path)
    wheels = sorted({(_number(r["python"]), r["python"], r["built_with"]) for r in result["rows"] if "wheel" in r})
    built = ", ".join(f"Python {python} with torch {torch}" for _, python, torch in wheels)
    folders = ", ".join(result["tests"]["folders"])
    return (
        f"{folders}, of each test's parameters one in {result['tests']['drawn']}; one wheel of each Python was built "
        f"({built}) and installed into each torch; {result['device']}, {result['date']}, "
        f"[{path.name}](../bench/results/{path.name})."
    )


def newest(folder: Path = RESULTS) -> Path:
    return max(folder.glob("versions-*.json"))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def main(argv: list[str] | None = None) -> int:
    from atrous.tools import info

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = RESULTS / f"versions-{datetime.date.today().isoformat()}.json"
    parser.add_argument("--versions", default="", metavar="LIST", help="Python/torch, by default all of the table")
    parser.add_argument("--json", type=Path, default=default, metavar="FILE")
    parser.add_argument("--keep", action="store_true", help="keep the environments in build/versions, gigabytes each")
    args = parser.parse_args(argv)
    try:
        combinations = [Combination.parse(text) for text in args.versions.split()] or ALL
    except ValueError as error:
        parser.error(str(error))
    rows = {(row["python"], row["torch"]): row for row in record.read(args.json).get("rows", [])}
    about = record.about(info.processor(), info.versions()) | {"tests": {"folders": FOLDERS, "drawn": DRAWN}}
    for row in measured(combinations, args.keep):
        rows[row["python"], row["torch"]] = row | {"commit": about["commit"]}
        ordered = sorted(rows, key=lambda versions: [*map(_number, versions)])
        record.write(args.json, {**about, "rows": [rows[key] for key in ordered]})
        print(f"Python {row['python']}, torch {row['torch']}: {cell(row)} {row.get('missing', '')}", flush=True)
    print("\n".join(table(args.json)))
    return int(any(row.get("failed") or "error" in row for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
