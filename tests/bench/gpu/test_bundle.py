"""Tests of the bundle for a GPU machine: installation, refusals, contents, and that Triton uses its kernels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import record
from bench.gpu import steps as plan
from bench.gpu.bundle import archive as bundle_archive
from bench.gpu.bundle import build as bundle_build
from bench.gpu.bundle import command as bundle
from bench.gpu.bundle import facts as bundle_facts
from bench.gpu.bundle.facts import BundleError, Target

ROOT = Path(__file__).parents[3]

TARGET = Target("9.0a", "3.12", "2.11.0", "3.6.0")
FACTS = {
    "python": "3.12", "torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0", "compiler": "c0de", "packages": "/nowhere",
}  # fmt: skip
TOOLS = {"nvcc": "13.0", "c++": "12.2"}
KEYS = ("0123" * 16, "4567" * 16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Triton's cache, empty."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def filled(folder: Path) -> Path:
    """A cache with a kernel and a module, as Triton leaves them."""
    kernel, module = (folder / bundle_archive.entry_name(key) for key in KEYS)
    for entry in (kernel, module):
        entry.mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.ptx", "k.ttir"):
        (kernel / name).write_text(name)
    children = {name: str(kernel / name) for name in ("k.cubin", "k.json", "k.ptx", "k.ttir")}
    (kernel / "__grp__k.json").write_text(json.dumps({"child_paths": children}))
    (module / "launcher.cpython-312.so").write_bytes(b"\0")
    return folder


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A bundle for TARGET with a placeholder wheel; the machine is made to match it."""
    content = tmp_path / "content"
    assert bundle_archive.copy_entries(filled(tmp_path / "triton"), KEYS, content / "triton") == 2
    about = bundle_facts.manifest(TARGET, FACTS, TOOLS)
    about |= {"wheel": "atrous.whl", "kernels": 1, "modules": 1}
    (content / "bundle.json").write_text(json.dumps(about))
    (content / "atrous.whl").write_text("none")
    bundle_archive.pack(content, tmp_path / "bundle.tar.xz")
    here(monkeypatch)
    return tmp_path / "bundle.tar.xz"


def here(monkeypatch, capability=(9, 0), **facts):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(bundle_facts, "here", lambda capability: FACTS | facts)


@pytest.fixture
def pip(monkeypatch):
    """The wheels that a fake pip, which always succeeds, was called to install."""
    installed, run = [], subprocess.run

    def fake(command, **options):
        if "pip" not in command:
            return run(command, **options)
        assert "--no-index" in command and options["env"]["PIP_NO_INDEX"] == "1"
        installed.append(Path(command[-1]).name)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", fake)
    return installed


def test_install(archive, cache, pip, capsys):
    assert bundle.main(["install", str(archive)]) == 0 and pip == ["atrous.whl"]
    assert "1 kernels in" in capsys.readouterr().out
    kernel = cache / bundle_archive.entry_name(KEYS[0])
    group = json.loads((kernel / "__grp__k.json").read_text())["child_paths"]
    assert group == {name: str(kernel / name) for name in ("k.cubin", "k.json")}
    assert {path.name for path in kernel.iterdir()} == {"k.cubin", "k.json", "__grp__k.json"}
    assert (cache / bundle_archive.entry_name(KEYS[1]) / "launcher.cpython-312.so").exists()
    assert bundle.main(["installed"]) == 0


def refused(capsys, cache, pip, *arguments) -> str:
    """The error message of a refused command; checks that nothing was installed."""
    assert bundle.main(list(map(str, arguments))) == 2
    message = capsys.readouterr().err
    assert message.startswith("bundle: ") and message.count("\n") == 1 and not pip and not cache.exists()
    return message


@pytest.mark.parametrize(
    "change, message",
    [
        ({"capability": (8, 0)}, "chip: the bundle is for 9.0, here is 8.0"),
        ({"capability": None}, "GPU: expected one of compute capability 9.0a, got none"),
        ({"python": "3.11"}, "python: the bundle is for 3.12, here is 3.11"),
        ({"torch": "2.12.0"}, "torch: the bundle is for 2.11.0, here is 2.12.0"),
        ({"triton": "3.7.1"}, "triton: the bundle is for 3.6.0, here is 3.7.1"),
        ({"cuda": "12.8"}, "cuda: the bundle is for 13.0, here is 12.8"),
        ({"compiler": "0ther"}, "ptxas and TRITON_ variables): the bundle is for c0de, here is 0ther"),
    ],
)
def test_a_bundle_for_something_else(archive, cache, pip, capsys, monkeypatch, change, message):
    here(monkeypatch, **change)
    assert message in refused(capsys, cache, pip, "install", archive)


def test_a_bundle_of_another_commit(archive, cache, pip, capsys, monkeypatch):
    monkeypatch.setattr(bundle_facts, "source", lambda: "other")
    monkeypatch.setenv("ATROUS_COMMIT", "a1b2c3")
    assert "here is a1b2c3 (sources other)" in refused(capsys, cache, pip, "install", archive)


@pytest.mark.parametrize("fraction", (0.0, 0.3, 0.99))
def test_a_truncated_archive(archive, cache, pip, capsys, fraction):
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(fraction * len(whole))])
    assert "archive: expected a whole bundle" in refused(capsys, cache, pip, "install", archive)


def test_an_archive_that_does_not_exist(tmp_path, cache, pip, capsys):
    assert "expected a whole bundle" in refused(capsys, cache, pip, "install", tmp_path / "none.tar.xz")


def test_a_wheel_that_pip_refuses(archive, cache, capfd):
    assert bundle.main(["install", str(archive)]) == 2
    assert "wheel: expected pip to install atrous.whl" in capfd.readouterr().err
    assert bundle.main(["installed"]) == 2


def test_a_cache_that_cannot_be_written(archive, tmp_path, pip, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    message = refused(capsys, tmp_path / "file" / "cache", pip, "install", archive)
    assert "cache: expected a folder that can be written" in message


def test_a_moved_or_damaged_cache(archive, cache, pip, capsys, monkeypatch, tmp_path):
    assert "expected an installed bundle" in refused(capsys, cache, pip, "installed")
    bundle.main(["install", str(archive)])
    cache.rename(tmp_path / "moved")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "moved"))
    assert bundle.main(["installed"]) == 2
    assert f"expected it in {cache}" in capsys.readouterr().err
    bundle.main(["install", str(archive)])  # again, over the moved cache: writes its new paths
    (tmp_path / "moved" / bundle_archive.entry_name(KEYS[1])).rename(tmp_path / "elsewhere")
    assert bundle.main(["installed"]) == 2
    assert "expected 2 entries" in capsys.readouterr().err


def test_the_same_content_gives_the_same_archive(archive, tmp_path):
    bundle_archive.pack(tmp_path / "content", tmp_path / "again.tar.xz")
    assert archive.read_bytes() == (tmp_path / "again.tar.xz").read_bytes()


def test_an_archive_that_is_too_large(tmp_path, monkeypatch):
    (tmp_path / "bundle.json").write_text("{}")
    monkeypatch.setattr(bundle_archive, "MAX_BYTES", 10)
    with pytest.raises(BundleError, match="expected at most 10 bytes, got"):
        bundle_archive.pack(tmp_path, tmp_path / "out" / "bundle.tar.xz")
    assert not list((tmp_path / "out").iterdir())


# Bundles that cannot be built


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


# Triton uses the kernels of a bundle

PROGRAM = """
import torch, triton
import triton.language as tl

@triton.jit
def kernel(x_ptr, SIZE: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, SIZE), 0.0)

kernel[(1,)](torch.empty(64, device="cuda"), SIZE=64)
"""


def under_standin(reports: Path, cache: Path) -> dict[str, str]:
    """The environment of a process under the stand-in driver, which reports its kernels in the folder `reports`."""
    path = os.pathsep.join([str(ROOT / "tests/support/standin/standin_site"), os.environ.get("PYTHONPATH", "")])
    chip = {"STANDIN_CHIP": "90", "STANDIN_ASKED": str(reports)}
    return os.environ | chip | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache)}


def report(tmp_path: Path, cache: Path) -> dict:
    """The report of a process that launches one kernel under the stand-in driver."""
    (program := tmp_path / "program.py").write_text(PROGRAM)
    reports = tmp_path / "reports"
    reports.mkdir()
    subprocess.run([sys.executable, program], check=True, env=under_standin(reports, cache))
    (path,) = reports.iterdir()
    result = json.loads(path.read_text())
    path.unlink(), reports.rmdir()
    return result


def test_triton_finds_its_kernels_at_another_place(tmp_path):
    pytest.importorskip("triton")
    first = report(tmp_path, tmp_path / "first")
    assert "kernel" in first["compiled"] and first["launched"] == 1
    keys = {*first["kernels"], *first["modules"]}
    bundle_archive.copy_entries(tmp_path / "first", keys, tmp_path / "content" / "triton")
    (tmp_path / "content" / "bundle.json").write_text("{}")
    bundle_archive.pack(tmp_path / "content", tmp_path / "bundle.tar.xz")
    (tmp_path / "first").rename(tmp_path / "gone")
    assert "kernel" in report(tmp_path, tmp_path / "gone")["compiled"]  # Triton ignores a moved cache
    bundle_archive.restore_entries(bundle_archive.open_archive(tmp_path / "bundle.tar.xz")[0], tmp_path / "second")
    second = report(tmp_path, tmp_path / "second")
    assert second["compiled"] == [] and second["kernels"] == first["kernels"] and second["launched"] == 1


TESTS = """
import pytest, torch

def test_on_the_gpu():
    x = torch.full((3,), 2.0, device="cuda")
    assert x.is_cuda and x.sum().item() == 6.0, "the stand-in has no values"
    raise SystemError("the test went on")
"""


def test_assertions_do_not_end_a_test_under_the_stand_in(tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "standin_pytest", "-p", "no:cacheprovider", "test_it.py"]
    run = subprocess.run(command, cwd=tmp_path, env=under_standin(tmp_path, tmp_path), capture_output=True, text=True)
    assert "SystemError: the test went on" in run.stdout and "AssertionError" not in run.stdout


DEFAULT_DEVICE = """
import torch
torch.set_default_device("cuda")
tensors = torch.randn(4, 3), torch.tensor([1.0, 2.0]), torch.nn.Conv2d(1, 2, 3).weight
assert all(x.is_cuda and x.device.type == "cuda" and not x.is_meta for x in tensors)
assert torch.allclose(tensors[0], tensors[0]) and torch.equal(tensors[1], tensors[1])
with torch.random.fork_rng():
    assert not torch.ones(2, device="cpu").is_cuda
"""


def test_tensors_on_the_default_device_under_the_stand_in(tmp_path):
    """The tests' `--device cuda` sets the default device, a torch function mode that looks up attributes by name."""
    pytest.importorskip("triton")
    subprocess.run([sys.executable, "-c", DEFAULT_DEVICE], check=True, env=under_standin(tmp_path, tmp_path))
