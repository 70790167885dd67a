"""The bundle of the tests: its target, facts and tools of the machine that built it, keys of its kernels."""

from __future__ import annotations

from bench.gpu.bundle.facts import Target

TARGET = Target("9.0a", "3.12", "2.11.0", "3.6.0")
FACTS = {
    "python": "3.12", "torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0", "compiler": "c0de", "packages": "/nowhere",
}  # fmt: skip
TOOLS = {"nvcc": "13.0", "c++": "12.2"}
KEYS = ("0123" * 16, "4567" * 16)
