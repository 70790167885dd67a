"""How many cases of each outcome one backend has, without those of fuse(): no sample is left out silently.

The samples are those of one version of torch; another has others.
"""

from __future__ import annotations

from collections import Counter

import torch

VERSION = "2.13."
COUNTS = {
    "nn.functional.conv2d": {"compared": 480, "not applicable: no convolution": 2320,
        "not applicable: torch refuses to make the module": 4, "refused: an unbatched input": 480,
        "refused: integer and complex tensors": 180, "the same error": 16},
    "nn.functional.batch_norm": {"compared": 640, "not applicable: no BatchNorm": 384,
        "not applicable: no convolution before a BatchNorm of this input": 40, "the same error": 216},
    "nn.functional.relu": {"compared": 3584, "refused: an unbatched input": 88,
        "refused: integer and complex tensors": 512, "the same error": 1430},
    "nn.functional.leaky_relu": {"compared": 864, "the same error": 144},
    "nn.functional.prelu": {"compared": 9920, "refused: an unbatched input": 192, "the same error": 1938},
    "nn.functional.rrelu": {"compared": 2784, "refused: an unbatched input": 54, "the same error": 732},
    "nn.functional.dropout": {"compared": 608, "not applicable: no dropout": 1520},
    "add": {"compared": 6784, "not applicable: no argument alpha": 652, "not applicable: the input is a number": 600,
        "refused: a number as the residual": 960, "refused: a residual larger than the output": 2304,
        "refused: an unbatched input": 312, "refused: integer and complex tensors": 2544, "the same error": 5176},
    "nn.Conv2d": {"compared": 32, "not applicable: no convolution": 128, "refused: an unbatched input": 32},
    "nn.BatchNorm2d": {"compared": 226, "not applicable: no BatchNorm": 116, "the same error": 6},
    "nn.ReLU": {"compared": 192, "the same error": 24},
    "nn.LeakyReLU": {"compared": 240, "refused: an unbatched input": 8, "the same error": 32},
    "nn.PReLU": {"compared": 384, "refused: an unbatched input": 8, "the same error": 40},
}  # fmt: skip


def kind(result: str) -> str:
    """An outcome as it is counted: whatever is compared by its values is of one kind, right or wrong."""
    return result if result.startswith(("refused", "not applicable", "the same error")) else "compared"


def wrong(compared: dict[tuple[str, str], Counter[str]]) -> list[str]:
    """The names and backends whose counts differ from COUNTS, in this version of torch; also printed."""
    if not torch.__version__.startswith(VERSION):
        return []
    differing = [
        f"{name} {backend}: expected {COUNTS.get(name)}, got {dict(counted)}"
        for (name, backend), counted in compared.items() if backend != "triton" and COUNTS.get(name) != counted
    ]  # fmt: skip
    print(*differing, sep="\n", end="\n" * bool(differing))
    return differing
