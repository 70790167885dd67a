"""How many cases of each outcome one backend has, without those of fuse(): no sample is left out silently.

The samples are those of one version of torch; another has others.
"""

from __future__ import annotations

from collections import Counter

import torch

VERSION = "2.13."
COUNTS: dict[str, dict[str, int]] = {}


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
    print("\n".join(differing))
    return differing
