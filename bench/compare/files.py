"""Compare the speed-ups of two results files of `make bench`."""

from __future__ import annotations

from typing import Any

from bench.compare.noise import SMALLEST, Change, usual
from bench.subjects.subject import OURS

Row = dict[str, Any]
REMARK = "Only speed-ups over eager are compared: the file is of another run, and another machine's times mean nothing."
SAME = "eager"  # providers whose names begin so have not changed: their difference is the noise between both runs


def changes(old: list[Row], new: list[Row]) -> dict[str, Change]:
    """Change of each of our rows that both files have, ratio as new / base in time.

    Raises ValueError if there is none. Rows whose spread is too large are left out.
    """
    known = {_key(row): row for row in old if row.get("counted")}
    pairs = [(row, known[_key(row)]) for row in new if row.get("counted") and _key(row) in known]
    ratios = {_key(row): before["speedup"] / row["speedup"] for row, before in pairs}
    noise = usual(ratio for key, ratio in ratios.items() if key[2].startswith(SAME) and ratio != 1)
    result = {}
    for row, before in pairs:
        if row["provider"].startswith(OURS):
            ratio, most = ratios[_key(row)], max(noise, row["spread"] + before["spread"], SMALLEST)
            result[" ".join(_key(row))] = Change(ratio, most, ratio > 1 + most)
    if not result:
        raise ValueError("expected rows of this package with a small spread in both files, got none in common")
    return result


def _key(row: Row) -> tuple[str, str, str, str]:
    return row["part"], row["case"], row["provider"], row["dtype"]
