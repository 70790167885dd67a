"""Build a bundle on a machine without a GPU, and check it.

The steps of `right` and `fast` run under the stand-in driver (tests/support/standin), so that Triton compiles every
kernel that they launch into its cache. Not included: kernels that depend on measured values (a step that runs with the
config that tune found fastest), those of the fuzzer, and Inductor's.
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
from bench.gpu.bundle.facts import ROOT, BundleError, Target
from bench.gpu.bundle.python import BUILD, environment, interpreter, run, wheel

OUT = ROOT / "out"
PROCESSES = 2  # steps at once, and pytest workers in each
# The steps of `right` and `fast` that launch kernels of this package, except the fuzzer, whose draws are unknown.
KERNEL_STEPS = (
    "every kernel once", "GPU tests", "the cases of every backend", "tune", "layers", "passes", "networks", "training",
)  # fmt: skip
LOADS = """
import ctypes, os, pathlib, atrous
folder = pathlib.Path(atrous.__file__).parent
ctypes.CDLL(str(folder / "libatrous.so"), mode=os.RTLD_NOW)
print("libatrous.so is loaded from", folder)
"""
# Under the stand-in driver a CUDA build of torch crashes when the interpreter exits, hence os._exit.
INSTALLS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from bench.gpu.bundle import command
status = command.main(["install", sys.argv[2]])
sys.stdout.flush(), sys.stderr.flush()
os._exit(status)
"""


def named_steps(names: list[str] | None) -> tuple[str, ...]:
    """The named steps, by default all. Raises BundleError for a name that is not in KERNEL_STEPS."""
    for name in names or ():
        if name not in KERNEL_STEPS:
            raise BundleError(f"steps: expected some of {', '.join(KERNEL_STEPS)}; got {name!r}")
    return tuple(names or KERNEL_STEPS)


def archive_path(target: Target, names: list[str] | None) -> Path:
    """Path of the archive; a bundle of some steps alone gets a name that .ci/gpu does not look for."""
    return OUT / f"{'partial-' if named_steps(names) != KERNEL_STEPS else ''}{target.name}.tar.xz"


def completed(step: plan.Step, status: int) -> bool:
    """True if the step ran to its end. pytest exits with 1 when tests failed, as some do without computed values."""
    return status == 0 or (status == 1 and "-m pytest" in step.command)


def requested_kernels(python: Path, target: Target, cache: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Runs the steps under the stand-in driver. Returns the cache keys of the kernels and modules that they requested,
    and the names of those that had to be compiled. Raises BundleError unless each step runs to its end."""
    with tempfile.TemporaryDirectory(prefix="standin-") as scratch:
        (reports := Path(scratch, "reports")).mkdir()
        under = {
            "PYTHONPATH": str(ROOT / "tests/support/standin/standin_site"), "STANDIN_CHIP": str(target.capability),
            "STANDIN_ASKED": str(reports), "TRITON_CACHE_DIR": str(cache), "XDG_CACHE_HOME": scratch,
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
            outcome = f"exit status {done.returncode}, {log.relative_to(ROOT)}" if done.returncode else "done"
            print(f"{time.perf_counter() - begun:8.1f} s  {step.name}: {outcome}", flush=True)
            return completed(step, done.returncode)

        phases = [plan.steps(phase, str(python), Path(scratch), None) for phase in ("right", "fast")]
        selected = [step for phase in phases for step in phase if step.name in names]
        with ThreadPoolExecutor(PROCESSES) as pool:
            complete = list(pool.map(one, selected))
        if early := [step.name for step, whole in zip(selected, complete) if not whole]:
            raise BundleError(f"steps: expected each to reach its end, {', '.join(early)} did not: {BUILD / 'logs'}")
        entries = [json.loads(path.read_text()) for path in reports.glob("*.json")]
    every = {name: [key for entry in entries for key in entry[name]] for name in ("kernels", "modules", "compiled")}
    return {**every, **{name: sorted(set(every[name])) for name in ("kernels", "modules")}}


def build(target: Target, named: Path | None, names: list[str] | None) -> int:
    """Builds the wheel, collects the kernels and writes the archive."""
    bundle_facts.require_arch(target)  # before anything is downloaded
    archive, selected = archive_path(target, names), named_steps(names)
    base = interpreter(target, named)
    facts = bundle_facts.probe(base, target.capability)
    tools = bundle_facts.toolchain(target, facts)
    about = bundle_facts.manifest(target, facts, tools)
    print(f"key: {about['key']}\n{json.dumps(about, indent=1)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-bundle-") as scratch:
        built = wheel(base, target, tools["cuda_home"], Path(scratch, "content"))
        python = environment(base, facts["packages"], BUILD / "env")
        run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", built], "pip install")
        cache = BUILD / "triton"
        requested = requested_kernels(python, target, cache, selected)
        keys = {*requested["kernels"], *requested["modules"]}
        bundle_archive.copy_entries(cache, keys, built.parent / bundle_archive.ENTRIES)
        about |= {name: len(requested[name]) for name in ("kernels", "modules")}
        about |= {"wheel": built.name, "steps": selected}
        (built.parent / "bundle.json").write_text(json.dumps(about, indent=1))
        size = bundle_archive.pack(built.parent, archive)
    print(f"{archive.relative_to(ROOT)}: {size / 2**20:.1f} MB, {about['kernels']} kernels, {about['modules']} modules")
    return 0


def check(target: Target, named: Path | None, names: list[str] | None, archive: Path | None) -> int:
    """Installs the bundle into a fresh Python and runs its steps: they must request every kernel of the bundle and
    compile none."""
    archive = archive or archive_path(target, names)
    _, about = bundle_archive.open_archive(archive)
    base = interpreter(target, named)
    facts = bundle_facts.probe(base, target.capability)
    bundle_facts.require(target, facts)
    python = environment(base, facts["packages"], BUILD / "check")
    cache = BUILD / "check" / "triton"
    alone = {"PIP_NO_INDEX": "1", "TRITON_CACHE_DIR": str(cache)}
    under = {"PYTHONPATH": str(ROOT / "tests/support/standin/standin_site"), "STANDIN_CHIP": str(target.capability)}
    with tempfile.TemporaryDirectory() as scratch:
        gpu = {**under, "STANDIN_ASKED": scratch}
        run([python, "-c", INSTALLS, ROOT, archive], "install", **alone, **gpu)
    run([python, "-c", LOADS], "libatrous.so", **alone)
    return verdict(about, requested_kernels(python, target, cache, tuple(about["steps"])))


def verdict(about: dict[str, Any], requested: dict[str, list[str]]) -> int:
    """0 if the steps requested exactly the kernels of the bundle, else 1."""
    compiled = requested["compiled"]
    kernels, modules = len(requested["kernels"]), len(requested["modules"])
    print(f"requested: {kernels} kernels, {modules} modules; compiled: {len(compiled)}")
    if compiled:
        print(f"not in the bundle: {', '.join(compiled)}", file=sys.stderr)
    differ = [name for name in ("kernels", "modules") if len(requested[name]) != about[name]]
    for name in differ:
        got = len(requested[name])
        print(f"{name}: expected all {about[name]} of the bundle to be requested, got {got}", file=sys.stderr)
    return int(bool(compiled or differ))
