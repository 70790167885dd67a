"""Tests of gpu.yml: its commands name existing targets, and nothing runs on the GPU runner without an approval."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / ".github" / "workflows" / "gpu.yml"
TEXT = WORKFLOW.read_text()
COMMANDS = re.findall(r"^ *- run: (.*)$", TEXT, re.MULTILINE)


def test_it_is_yaml_with_two_jobs():
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load(TEXT)["jobs"]
    assert list(jobs) == ["bundle", "measure"] and jobs["measure"]["needs"] == "bundle"
    assert [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step] == COMMANDS


def test_the_gpu_runner_needs_an_approval():
    bundle, measure = TEXT.split("  measure:\n")
    assert "runs-on: [self-hosted, gpu]" in measure and "    environment: gpu\n" in measure
    assert "self-hosted" not in bundle and "needs: bundle" in measure and "\t" not in TEXT


def test_its_phases_are_those_of_ci_gpu(tmp_path):
    phases = [re.match(r"\.ci/gpu (\w+) (\w+)$", command) for command in COMMANDS if command.startswith(".ci/gpu")]
    assert [match[1] for match in phases] == ["bundle", "right", "fast"]
    for match in phases:
        command = [str(ROOT / ".ci" / "gpu"), match[1], str(tmp_path / match[2]), "--dry-run"]
        environment = {**os.environ, "PYTHON": sys.executable, "ATROUS_BUNDLE": "none"}  # out/ may have an older one
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_its_other_commands_exist():
    modules = re.findall(r"python3 -m ([\w.]+)", "\n".join(COMMANDS))
    assert modules == ["bench.gpu.summary"] and all(importlib.util.find_spec(module) for module in modules)
    targets = [command.removeprefix("make ") for command in COMMANDS if command.startswith("make ")]
    assert targets == ["gpu-bundle-download"] and f"\n{targets[0]}:" in (ROOT / "Makefile").read_text()
    assert COMMANDS.index("make gpu-bundle-download") + 1 == COMMANDS.index(".ci/gpu bundle out")  # before its limit
    uploaded = re.findall(r"^ +path: (\S+)$", TEXT, re.MULTILINE)
    assert uploaded == ["out/gpu-bundle-*", "out", "results"]  # the folders where .ci/gpu writes and looks for a bundle


def test_the_document_names_what_the_workflow_has():
    text = (ROOT / "docs" / "gpu-runner.md").read_text()
    for name in ("ARCH", "PY", "TORCH", "TRITON"):
        assert re.search(rf"^      {name}: ", TEXT, re.MULTILINE) and f"`{name}`" in text
    versions = {name: re.search(rf'^      {name}: "(.*)"', TEXT, re.MULTILINE)[1] for name in ("TORCH", "TRITON", "PY")}
    assert f"torch=={versions['TORCH']} triton=={versions['TRITON']}" in text and f"python{versions['PY']} -m" in text
