"""Builds a bundle on a machine without a GPU, and checks it: the steps themselves say which kernels they ask for.

The steps of `right` and `fast` run under the stand-in driver (tests/support/standin), so whatever they launch is
compiled into Triton's cache, by Triton. Not seen: kernels that depend on values (a config that tune will have measured
to be the fastest, in the epilogue of another step), those of the fuzzer, and Inductor's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import record
from bench.gpu import steps as plan
from bench.gpu.bundle import archive as bundle_archive
from bench.gpu.bundle import facts as bundle_facts
from bench.gpu.bundle.facts import ROOT, Mistake, Target
from bench.gpu.bundle.python import BUILD, environment, interpreter, run, wheel

OUT = ROOT / "out"
PROCESSES = 2  # of the steps at once, and of the tests in one
# The steps of `right` and `fast` that launch our kernels, except the fuzzer: which ones it draws is not known before.
ASK = (
    "every kernel once", "GPU tests", "the cases of every backend", "tune", "sites", "passes", "networks", "training",
)  # fmt: skip
LOADS = """
import ctypes, os, pathlib, atrous
found = pathlib.Path(atrous.__file__).parent
ctypes.CDLL(str(found / "libatrous.so"), mode=os.RTLD_NOW)
print("libatrous.so is loaded from", found)
"""
# Under the stand-in a CUDA build of torch does not survive the interpreter's last collection.
INSTALLS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from bench.gpu.bundle import command
status = command.main(["install", sys.argv[2]])
sys.stdout.flush(), sys.stderr.flush()
os._exit(status)
"""


def named_steps(names: list[str] | None) -> tuple[str, ...]:
    """Raises Mistake for one that is none of ours."""
    for name in names or ():
        if name not in ASK:
            raise Mistake(f"steps: expected some of {', '.join(ASK)}; got {name!r}")
    return tuple(names or ASK)


def archive_path(target: Target, names: list[str] | None) -> Path:
    """Only a whole bundle has the name that .ci/gpu looks for."""
    return OUT / f"{'partial-' if named_steps(names) != ASK else ''}{target.name}.tar.xz"


def reached_its_end(step: plan.Step, status: int) -> bool:
    """pytest answers 1 where it ran every test and some failed: without values some do."""
    return status == 0 or (status == 1 and "-m pytest" in step.command)


def ask(python: Path, target: Target, cache: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Runs the steps under the stand-in; the keys of the kernels and modules that they asked for, and the names of
    those that the cache did not hold. Raises Mistake unless each step reaches its end."""
    with tempfile.TemporaryDirectory(prefix="standin-") as scratch:
        (asked := Path(scratch, "asked")).mkdir()
        under = {
            "PYTHONPATH": str(ROOT / "tests/support/standin/standin_site"), "STANDIN_CHIP": str(target.capability),
            "STANDIN_ASKED": str(asked), "TRITON_CACHE_DIR": str(cache), "XDG_CACHE_HOME": scratch,
            "PYTEST_ADDOPTS": "-p standin_pytest -p no:cacheprovider", "ATROUS_COMMIT": record.commit(),
        }  # fmt: skip

        def one(step: plan.Step) -> bool:
            begun, command = time.perf_counter(), re.sub(r"(-m pytest) -n \d+", rf"\1 -n {PROCESSES}", step.command)
            log = BUILD / "logs" / f"{step.name.replace(' ', '-')}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                done = subprocess.run(
                    ["bash", "-c", command], cwd=ROOT, env=os.environ | under, stdout=output, stderr=output
                )
            told = f"exit status {done.returncode}, {log.relative_to(ROOT)}" if done.returncode else "done"
            print(f"{time.perf_counter() - begun:8.1f} s  {step.name}: {told}", flush=True)
            return reached_its_end(step, done.returncode)

        phases = [plan.steps(phase, str(python), Path(scratch), None) for phase in ("right", "fast")]
        wanted = [step for phase in phases for step in phase if step.name in names]
        with ThreadPoolExecutor(PROCESSES) as pool:
            ended = list(pool.map(one, wanted))
        if early := [step.name for step, whole in zip(wanted, ended) if not whole]:
            raise Mistake(f"steps: expected each to reach its end, {', '.join(early)} did not: {BUILD / 'logs'}")
        found = [json.loads(path.read_text()) for path in asked.glob("*.json")]
    every = {name: [key for told in found for key in told[name]] for name in ("kernels", "modules", "compiled")}
    return {**every, **{name: sorted(set(every[name])) for name in ("kernels", "modules")}}


def build(target: Target, named: Path | None, names: list[str] | None) -> int:
    """Builds the wheel, asks for the kernels, and writes the archive."""
    bundle_facts.require_arch(target)  # before anything is downloaded for it
    archive, wanted = archive_path(target, names), named_steps(names)
    base = interpreter(target, named)
    found = bundle_facts.probe(base, target.capability)
    tools = bundle_facts.toolchain(target, found)
    about = bundle_facts.manifest(target, found, tools)
    print(f"key: {about['key']}\n{json.dumps(about, indent=1)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-bundle-") as scratch:
        made = wheel(base, target, tools["cuda_home"], Path(scratch, "content"))
        python = environment(base, found["packages"], BUILD / "env")
        run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", made], "pip install")
        cache = BUILD / "triton"
        asked = ask(python, target, cache, wanted)
        keys = {*asked["kernels"], *asked["modules"]}
        bundle_archive.take(cache, keys, made.parent / bundle_archive.ENTRIES)
        about |= {name: len(asked[name]) for name in ("kernels", "modules")}
        about |= {"wheel": made.name, "steps": wanted}
        (made.parent / "bundle.json").write_text(json.dumps(about, indent=1))
        size = bundle_archive.pack(made.parent, archive)
    print(f"{archive.relative_to(ROOT)}: {size / 2**20:.1f} MB, {about['kernels']} kernels, {about['modules']} modules")
    return 0


def check(target: Target, named: Path | None, names: list[str] | None, archive: Path | None) -> int:
    """Installs the bundle into a fresh Python, and has its steps ask for their kernels: for all that it holds, and
    none may be compiled."""
    archive = archive or archive_path(target, names)
    _, about = bundle_archive.opened(archive)
    base = interpreter(target, named)
    found = bundle_facts.probe(base, target.capability)
    bundle_facts.require(target, found)
    python = environment(base, found["packages"], BUILD / "check")
    cache = BUILD / "check" / "triton"
    alone = {"PIP_NO_INDEX": "1", "TRITON_CACHE_DIR": str(cache)}
    under = {"PYTHONPATH": str(ROOT / "tests/support/standin/standin_site"), "STANDIN_CHIP": str(target.capability)}
    with tempfile.TemporaryDirectory() as scratch:
        gpu = {**under, "STANDIN_ASKED": scratch}
        run([python, "-c", INSTALLS, ROOT, archive], "install", **alone, **gpu)
    run([python, "-c", LOADS], "libatrous.so", **alone)
    return verdict(about, ask(python, target, cache, tuple(about["steps"])))


def verdict(about: dict[str, Any], asked: dict[str, list[str]]) -> int:
    """0 if its steps asked for what the bundle holds and for nothing else, else 1."""
    compiled = asked["compiled"]
    print(f"asked: {len(asked['kernels'])} kernels, {len(asked['modules'])} modules; compiled: {len(compiled)}")
    if compiled:
        print(f"not in the bundle: {', '.join(compiled)}", file=sys.stderr)
    differ = [name for name in ("kernels", "modules") if len(asked[name]) != about[name]]
    for name in differ:
        print(
            f"{name}: expected all {about[name]} of the bundle to be asked for, got {len(asked[name])}", file=sys.stderr
        )
    return int(bool(compiled or differ))
