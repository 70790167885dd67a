"""Builds a bundle on a machine without a GPU, and checks it: the steps themselves say which kernels they ask for.

The steps of `right` and `fast` run under the stand-in driver (tests/gpu/standin_site), so whatever they launch is
compiled into Triton's cache, by Triton. Not seen: kernels that depend on values (a config that tune will have measured
to be the fastest, in the epilogue of another step), those of the fuzzer, and Inductor's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bundle_archive
import bundle_facts
import steps as plan
from bundle_facts import ROOT, Mistake, Target

BUILD, OUT = ROOT / "build" / "gpu-bundle", ROOT / "out"
PROCESSES = 2  # of the steps at once, and of the tests in one
# Those of `right` and `fast` that launch other kernels than these: none of ours, or what nobody can know before.
ASK = (
    "every kernel once", "GPU tests", "the cases of every backend", "tune", "sites", "passes", "networks", "training",
)  # fmt: skip
NEEDS = ("numpy", "hypothesis", "pytest", "pytest-xdist", "ninja", "setuptools==81.0.0", "wheel")
LOADS = """
import ctypes, os, pathlib, atrous
found = pathlib.Path(atrous.__file__).parent
ctypes.CDLL(str(found / "libatrous.so"), mode=os.RTLD_NOW)
print("libatrous.so is loaded from", found)
"""


def run(command: list[Any], what: str, **more: str) -> None:
    """Raises Mistake if it fails; its output is shown."""
    if status := subprocess.run([str(word) for word in command], cwd=ROOT, env=os.environ | more).returncode:
        raise Mistake(f"{what}: expected exit status 0, got {status}")


def interpreter(target: Target, named: Path | None) -> Path:
    """The Python to build with: the one that is named, else one that pip fills."""
    if named is not None:
        return named
    folder = BUILD / f"python-{target.python}-torch-{target.torch}-triton-{target.triton}"
    if not (folder / "complete").exists():
        if (base := shutil.which(f"python{target.python}")) is None:
            raise Mistake(f"python: expected python{target.python} on the PATH or --interpreter, found neither")
        run([base, "-m", "venv", folder], "venv")
        packages = (f"torch=={target.torch}", f"triton=={target.triton}", *NEEDS)
        run([folder / "bin/python", "-m", "pip", "install", "--quiet", *packages], "pip install")
        (folder / "complete").touch()
    return folder / "bin" / "python"


def environment(base: Path, packages: str, folder: Path) -> Path:
    """A fresh Python that sees the packages of another one, and whatever is installed into it first."""
    shutil.rmtree(folder, ignore_errors=True)
    run([base, "-m", "venv", "--without-pip", folder], "venv")
    python = folder / "bin" / "python"
    (Path(bundle_facts.probe(python)["packages"]) / "shared.pth").write_text(packages + "\n")
    return python


def wheel(python: Path, target: Target, cuda_home: str, folder: Path) -> Path:
    """The package for that chip; objects that are newer than their sources are kept by setuptools and ninja."""
    headers = BUILD / "cutlass"
    if not (headers / "cutlass_library").exists():
        needed = ["-r", ROOT / "requirements-cuda.txt"]
        run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", headers, *needed], "CUTLASS")
    for stale in (ROOT / "build").glob("lib.*"):
        shutil.rmtree(stale)
    build = {
        "TORCH_CUDA_ARCH_LIST": target.arch, "FORCE_CUDA": "1", "CUDA_HOME": cuda_home, "PYTHONPATH": str(headers),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "PIP_NO_INDEX": "1",
    }  # fmt: skip
    options = ("--quiet", "--no-build-isolation", "--no-deps", "-w", folder)
    run([python, "-m", "pip", "wheel", *options, ROOT], "wheel", **build)
    (made,) = folder.glob("atrous-*.whl")
    return made


def ask(python: Path, target: Target, cache: Path, names: list[str] | None) -> dict[str, list[str]]:
    """Runs the steps under the stand-in; the keys of the kernels and modules that they asked for, and the names of
    those that the cache did not hold."""
    with tempfile.TemporaryDirectory(prefix="standin-") as scratch:
        (asked := Path(scratch, "asked")).mkdir()
        under = {
            "PYTHONPATH": str(ROOT / "tests/gpu/standin_site"), "STANDIN_CHIP": str(target.capability),
            "STANDIN_ASKED": str(asked), "TRITON_CACHE_DIR": str(cache), "XDG_CACHE_HOME": scratch,
            "PYTEST_ADDOPTS": "-p standin_pytest -p no:cacheprovider",
        }  # fmt: skip

        def one(step: plan.Step) -> None:
            begun, command = time.perf_counter(), re.sub(r"(-m pytest) -n \d+", rf"\1 -n {PROCESSES}", step.command)
            log = BUILD / "logs" / f"{step.name.replace(' ', '-')}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                done = subprocess.run(
                    ["bash", "-c", command], cwd=ROOT, env=os.environ | under, stdout=output, stderr=output
                )
            told = f"exit status {done.returncode}, {log.relative_to(ROOT)}" if done.returncode else "done"
            print(f"{time.perf_counter() - begun:8.1f} s  {step.name}: {told}", flush=True)

        phases = [plan.steps(phase, str(python), Path(scratch), None) for phase in ("right", "fast")]
        wanted = [step for phase in phases for step in phase if step.name in (names or ASK)]
        with ThreadPoolExecutor(PROCESSES) as pool:
            list(pool.map(one, wanted))
        found = [json.loads(path.read_text()) for path in asked.glob("*.json")]
    every = {name: [key for told in found for key in told[name]] for name in ("kernels", "modules", "compiled")}
    return {**every, **{name: sorted(set(every[name])) for name in ("kernels", "modules")}}


def build(target: Target, named: Path | None, names: list[str] | None) -> int:
    bundle_facts.require_arch(target)  # before anything is downloaded for it
    base = interpreter(target, named)
    found = bundle_facts.probe(base)
    tools = bundle_facts.toolchain(target, found)
    about = bundle_facts.manifest(target, found["cuda"], tools)
    print(f"key: {about['key']}\n{json.dumps(about, indent=1)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-bundle-") as scratch:
        made = wheel(base, target, tools["cuda_home"], Path(scratch, "content"))
        python = environment(base, found["packages"], BUILD / "env")
        run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", made], "pip install")
        cache = BUILD / "triton"
        asked = ask(python, target, cache, names)
        keys = {*asked["kernels"], *asked["modules"]}
        bundle_archive.take(cache, keys, made.parent / "triton")
        about |= {name: len(asked[name]) for name in ("kernels", "modules")}
        about |= {"wheel": made.name, "steps": names or ASK}
        (made.parent / "bundle.json").write_text(json.dumps(about, indent=1))
        archive = OUT / f"{target.name}.tar.xz"
        size = bundle_archive.pack(made.parent, archive)
    print(f"{archive.relative_to(ROOT)}: {size / 2**20:.1f} MB, {about['kernels']} kernels, {about['modules']} modules")
    return 0


def check(target: Target, named: Path | None, names: list[str] | None, archive: Path | None) -> int:
    """Installs the bundle into a fresh Python, and has the steps ask for their kernels: none may be compiled."""
    base = interpreter(target, named)
    found = bundle_facts.probe(base)
    bundle_facts.require(target, found)
    python = environment(base, found["packages"], BUILD / "check")
    cache = BUILD / "check" / "triton"
    alone = {"PIP_NO_INDEX": "1", "TRITON_CACHE_DIR": str(cache)}
    under = {"PYTHONPATH": str(ROOT / "tests/gpu/standin_site"), "STANDIN_CHIP": str(target.capability)}
    archive = archive or OUT / f"{target.name}.tar.xz"
    with tempfile.TemporaryDirectory() as scratch:
        gpu = {**under, "STANDIN_ASKED": scratch}
        run([python, ROOT / "bench/gpu/bundle.py", "install", archive], "install", **alone, **gpu)
    run([python, "-c", LOADS], "libatrous.so", **alone)
    asked = ask(python, target, cache, names)
    compiled = asked["compiled"]
    print(f"asked: {len(asked['kernels'])} kernels, {len(asked['modules'])} modules; compiled: {len(compiled)}")
    if compiled:
        print(f"not in the bundle: {', '.join(compiled)}", file=sys.stderr)
    return int(bool(compiled))
