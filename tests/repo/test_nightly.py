"""nightly.yml runs fuzz and every target of the Makefile whose name ends in -all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW = ROOT / ".github" / "workflows" / "nightly.yml"


def test_it_runs_every_long_target():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(WORKFLOW.read_text())["jobs"]["whole"]
    targets = set(re.findall(r"^([a-z-]+-all):", MAKEFILE, re.MULTILINE)) | {"fuzz"}
    inside = set(re.findall(r"^\t\$\(MAKE\) ([a-z-]+)$", MAKEFILE, re.MULTILINE))  # as gates-all runs standin-all
    listed = job["strategy"]["matrix"]["target"]
    assert set(listed) == targets - inside and len(set(listed)) == len(listed)
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    assert command.startswith("make ${{ matrix.target }} SEED=")
