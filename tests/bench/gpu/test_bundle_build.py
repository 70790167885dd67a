"""Tests of building the bundle: refusals, its key, the steps that request kernels, and the check that it has them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from bundle_cases import FACTS, TARGET, TOOLS

from bench import record
from bench.gpu import steps as plan
from bench.gpu.bundle import build as bundle_build
from bench.gpu.bundle import facts as bundle_facts
from bench.gpu.bundle.facts import BundleError


def toolkit(folder: Path, release: str) -> str:
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}\n")
    nvcc.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    "target, facts, message",
    [
        (TARGET._replace(arch="9.9"), {}, "arch: expected one of 8.0, .*9.0a, .* got '9.9'"),
        (TARGET, {"python": "3.11"}, "python: expected 3.12, got 3.11"),
        (TARGET, {"torch": "2.13.0"}, "torch: expected 2.11.0, got 2.13.0"),
        (TARGET, {"triton": "3.7.1"}, "triton: expected 3.6.0, got 3.7.1"),
        (TARGET, {"cuda": None}, "torch: expected a CUDA build of 2.11.0, got a CPU build"),
        (TARGET, {"cuda": "12.8"}, "nvcc: expected CUDA 12.8 as torch 2.11.0 has it, got CUDA 13.0"),
    ],
)
def test_a_bundle_that_cannot_be_built(target, facts, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", toolkit(tmp_path, "13.0"))
    monkeypatch.setattr(bundle_facts, "probe", lambda interpreter, capability: FACTS | facts)
    with pytest.raises(BundleError, match=message):
        bundle_build.build(target, Path("python"), None)


def test_without_nvcc(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BundleError, match="nvcc: expected CUDA's compiler in CUDA_HOME"):
        bundle_facts.toolchain(TARGET, FACTS)


@pytest.mark.parametrize("program", ("no-such-python", "false"))
def test_an_interpreter_that_is_no_python(program):
    with pytest.raises(BundleError, match="interpreter: expected a Python"):
        bundle_facts.probe(program, 90)


def test_the_key(monkeypatch):
    """The key depends on target, versions and sources, not on the commit."""

    def key(target=TARGET, facts=FACTS, tools=TOOLS):
        return bundle_facts.manifest(target, facts, tools)["key"]

    first = key()
    monkeypatch.setenv("ATROUS_COMMIT", "a1b2c3")
    assert key() == first
    changed = [
        key(tools=TOOLS | {"nvcc": "13.1"}),
        key(TARGET._replace(arch="8.0")),
        key(facts=FACTS | {"cuda": "12.8"}),
    ]
    changed += [key(facts=FACTS | {"compiler": "0ther"})]
    monkeypatch.setattr(bundle_facts, "source", lambda: "other")
    assert len({first, *changed, key()}) == 6


def test_files_that_a_run_writes_are_no_sources(tmp_path, monkeypatch):
    """The log of `.ci/gpu right` exists before the step that installs the bundle."""
    monkeypatch.setattr(bundle_facts, "ROOT", tmp_path)
    for name in ("bench/record.py", "bench/results/NOTES.md", "pyops/tuning/tables/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as it was")
    before = bundle_facts.source()
    for name in ("bench/results/h100-right.log", "bench/results/h100.7.part", "pyops/tuning/tables/b.json"):
        (tmp_path / name).write_text("written by a run")
    assert bundle_facts.source() == before
    (tmp_path / "bench/record.py").write_text("changed")
    assert bundle_facts.source() != before


def test_the_compiler_hash_depends_on_all_that_changes_kernels(monkeypatch):
    pytest.importorskip("triton")
    known = {bundle_facts.compiler(90), bundle_facts.compiler(90)}
    assert len(known) == 1 and bundle_facts.compiler(80) not in known
    monkeypatch.setenv("DISABLE_PTXAS_OPT", "1")
    assert bundle_facts.compiler(90) not in known
    assert bundle_facts.probe(sys.executable, 90) == bundle_facts.here(90)


# The steps that request kernels


def test_every_kernel_step_is_in_the_plan(tmp_path):
    names = {step.name for phase in ("right", "fast") for step in plan.steps(phase, "python", tmp_path, None)}
    assert set(bundle_build.KERNEL_STEPS) <= names


def test_only_a_whole_bundle_is_found_by_ci_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("ATROUS_BUNDLE", raising=False)
    monkeypatch.setattr(bundle_build, "OUT", tmp_path / "out")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    whole, part = (bundle_build.archive_path(TARGET, names) for names in (None, ["passes"]))
    for path in (whole, part, whole.with_name(whole.name + ".part")):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (len(path.name), len(path.name)))  # the whole one is the oldest
    assert record.bundle() == whole


def test_an_unknown_step():
    with pytest.raises(BundleError, match="steps: expected some of every kernel once, .*; got 'pases'"):
        bundle_build.archive_path(TARGET, ["passes", "pases"])


def run_one_step(monkeypatch, tmp_path, command: str) -> dict[str, list[str]]:
    """requested_kernels() for a plan of one step, which does not load the stand-in driver."""
    monkeypatch.setattr(plan, "steps", lambda phase, *_: [plan.Step("passes", 9, command)] if phase == "fast" else [])
    monkeypatch.setattr(bundle_build, "BUILD", bundle_facts.ROOT / "build" / f"test-{tmp_path.name}")
    try:
        return bundle_build.requested_kernels(Path(sys.executable), TARGET, tmp_path, ("passes",))
    finally:
        shutil.rmtree(bundle_build.BUILD)


@pytest.mark.parametrize("command", ("exit 1", "exit 139", "echo -m pytest; exit 2"))
def test_a_step_that_stops_early(monkeypatch, tmp_path, command):
    with pytest.raises(BundleError, match="steps: expected each to reach its end, passes did not"):
        run_one_step(monkeypatch, tmp_path, command)


def test_failed_tests_are_no_early_end(monkeypatch, tmp_path):
    report = json.dumps({"kernels": ["k"], "modules": [], "compiled": []})
    requested = run_one_step(monkeypatch, tmp_path, f"echo '{report}' > $STANDIN_ASKED/1.json; echo -m pytest; exit 1")
    assert requested == json.loads(report)


@pytest.mark.parametrize(
    "requested, message",
    [
        ({"kernels": ["k"], "modules": [], "compiled": []}, "modules: expected all 1 of the bundle"),
        (
            {"kernels": [], "modules": ["m"], "compiled": []},
            "kernels: expected all 1 of the bundle to be requested, got 0",
        ),
        ({"kernels": ["k"], "modules": ["m"], "compiled": ["conv"]}, "not in the bundle: conv"),
        ({"kernels": ["k"], "modules": ["m"], "compiled": []}, ""),
    ],
)
def test_the_verdict_of_a_check(capsys, requested, message):
    assert bundle_build.verdict({"kernels": 1, "modules": 1}, requested) == int(bool(message))
    assert message in capsys.readouterr().err
