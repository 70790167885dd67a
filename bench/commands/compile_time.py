"""Seconds of the first call of a fused ResNet34, each in a process of its own. Exits 1 above a budget.

    python -m bench.commands.compile_time [--json FILE]

The time has the import of Dynamo in it. Every mode runs in two processes, one after the other: the second finds what
the first has left in caches on disk, if anything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import record

BUDGETS = {"eval": 4.0, "frozen": 4.0, "train": 8.0}
PROGRAM = """
import sys, time, torch, atrous
mode = sys.argv[1]
model, x = atrous.models.resnet34(act="prelu").train(mode == "train"), torch.randn(2, 3, 64, 64)
fused = atrous.fuse(model, freeze=mode == "frozen")
begin = time.perf_counter()
with torch.set_grad_enabled(mode == "train"):
    y = fused(x)
if mode == "train":
    y.sum().backward()
print(time.perf_counter() - begin)
"""


def measured(mode: str) -> float:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for mode, budget in BUDGETS.items():
        first, second = measured(mode), measured(mode)
        rows.append({"mode": mode, "first_s": first, "second_process_s": second, "budget_s": budget})
        over = "  over budget" if min(first, second) > budget else ""
        print(f"{mode:<8}{first:>7.2f} s{second:>7.2f} s in a second process, budget {budget} s{over}", flush=True)
    if args.json:
        record.write_rows(args.json, rows)
    return int(any(min(row["first_s"], row["second_process_s"]) > row["budget_s"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
