"""Measure the two ceilings that the tables compare with: a bf16 matrix product and a copy.

python -m bench.gpu.ceilings RESULTS_DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from atrous import testing
from atrous.tools.timing import ceilings
from bench.tables import table as tables


def run(
    args: argparse.Namespace, device: torch.device, result: tables.Result, save: Callable[[], None]
) -> tuple[str, int]:
    result["ceilings"] = ceilings(device)
    save()
    return "matmul {matmul_tflops:.0f} TFLOP/s, copy {copy_gb_s:.0f} GB/s".format(**result["ceilings"]), 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the matmul and copy ceilings of this GPU.")
    return tables.main(parser, argv, "ceilings", {}, run)


if __name__ == "__main__":
    testing.exit_with(main())
