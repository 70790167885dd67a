"""Memory behind many calls of changing shapes: at call 10,000 at most 1.02 times that at call 1,000."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "processes" / "growth.py"
FIRST, LAST, MOST = 1_000, 10_000, 1.02


def growth(kind, dtype="float32", last=LAST):
    """The memory behind the last call by that behind the first ones, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, kind, dtype, str(FIRST), str(last)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    before, behind = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind} {dtype}: {before / 1e6:.1f} MB, then {behind / 1e6:.1f} MB")
    return behind / before


GATES = [("functional", "float32"), ("gradients", "float32"), ("frozen", "bfloat16"), ("fused_frozen", "float32")]
NIGHTLY = [
    ("functional", "bfloat16"), ("gradients", "bfloat16"), ("frozen", "float32"), ("fused", "float32"),
    ("fused", "bfloat16"), ("fused_frozen", "bfloat16"), ("fused_training", "float32"), ("fused_training", "bfloat16"),
]  # fmt: skip


@pytest.mark.gate
@pytest.mark.parametrize("kind, dtype", [
    *GATES, *(pytest.param(*case, marks=pytest.mark.nightly) for case in NIGHTLY)
])  # fmt: skip
def test_memory_does_not_grow_with_the_calls(kind, dtype):
    assert growth(kind, dtype) <= MOST


@pytest.mark.gate
def test_a_kilobyte_a_call_is_seen():
    assert growth("leaking") > MOST
