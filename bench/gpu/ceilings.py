"""The two ceilings of a GPU, which every table is held against: a bf16 matrix product and a copy.

python -m bench.gpu.ceilings RESULTS_DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch  # noqa: E402

from atrous.tools.timing import ceilings  # noqa: E402
from bench.tables import table as tables  # noqa: E402


def run(
    args: argparse.Namespace, device: torch.device, result: tables.Result, save: Callable[[], None]
) -> tuple[str, int]:
    result["ceilings"] = ceilings(device)
    save()
    return "matmul {matmul_tflops:.0f} TFLOP/s, copy {copy_gb_s:.0f} GB/s".format(**result["ceilings"]), 0


def main(argv: list[str] | None = None) -> int:
    return tables.main(argparse.ArgumentParser(description="The two ceilings of this GPU."), argv, "ceilings", {}, run)


if __name__ == "__main__":
    sys.exit(main())
