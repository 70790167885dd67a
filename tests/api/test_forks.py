"""A process that forks after torch's threads have run: its children call the same objects and do not hang."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from thread_cases import KINDS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

SCRIPT = Path(__file__).parents[1] / "support" / "processes" / "forked.py"


@pytest.mark.parametrize("kinds", [tuple(KINDS), pytest.param(("fused", "fused_frozen"), marks=pytest.mark.gate)])
def test_children_compute_what_their_parent_did(kinds):
    """In the workers of a DataLoader and in a child with one thread, as torch's own operators do."""
    done = subprocess.run([sys.executable, SCRIPT, *kinds], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends == {
        **{kind: {"loader": "same", "one thread": "same"} for kind in ("torch", *kinds)}, "small": {"as it is": "same"}
    }  # fmt: skip
