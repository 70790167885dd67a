"""Builds csrc/cuda as C++ for the CPU (cuda_runtime.h), optionally with a sanitizer or a planted fault."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[3]
HARNESS = ROOT / "tests/support/host_cuda"
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-Werror=switch",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-DATROUS_LIBRARY=atrous_host",  # see csrc/cuda/ops.h
    "-DATROUS_CUDA_KEY=CPU",
]


def sources() -> list[Path]:
    """The kernels without CUTLASS, which needs tensor cores, and the host code around them."""
    kernels = [
        path for path in sorted(ROOT.glob("csrc/cuda/**/*.cu")) if not re.search(r"sm(80|90)\.cuh", path.read_text())
    ]
    return [
        *kernels,
        *(ROOT / f"csrc/cuda/conv/{name}.cpp" for name in ("conv", "heuristics")),
        *(ROOT / f"csrc/{name}.cpp" for name in ("arguments", "convolution", "layout")),
        *sorted(HARNESS.glob("*.cpp")),
    ]


def compile_source(source: Path, target: Path, sanitizer: str | None) -> Path:
    includes = [f"-I{path}" for path in (HARNESS, *include_paths())]
    sanitize = [f"-fsanitize={sanitizer}"] if sanitizer else []
    subprocess.run(["g++", *FLAGS, *sanitize, *includes, "-x", "c++", "-c", str(source), "-o", str(target)], check=True)
    return target


def build(folder: Path, sanitizer: str | None = None, first: str = "") -> Path:
    """Links the library from folder/*.o, compiling the objects that are missing.

    first: the unit that is linked first: its copy of an inline function is the one that is used.
    """
    missing = [(path, folder / f"{path.stem}.o") for path in sources() if not (folder / f"{path.stem}.o").exists()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda both: compile_source(*both, sanitizer), missing))
    library, sanitize = folder / "host.so", [f"-fsanitize={sanitizer}"] if sanitizer else []
    objects = [str(folder / f"{path.stem}.o") for path in sorted(sources(), key=lambda path: path.name != first)]
    torch_cpu = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")] + ["-ltorch_cpu"]
    command = ["g++", "-shared", "-pthread", *sanitize, *objects, *torch_cpu, "-o", str(library)]
    subprocess.run(command, check=True)
    return library


def built_once(factory: pytest.TempPathFactory) -> Path:
    """The library without a sanitizer, built once for all workers of pytest-xdist and all files of tests.

    factory: the fixture tmp_path_factory.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    folder = (factory.getbasetemp().parent if worker else factory.getbasetemp()) / "host-cuda"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        library = folder / "host.so"
        return library if library.exists() else build(folder)


def planted(built: Path, folder: Path, sanitizer: str, header: str, unit: str, right: str, wrong: str) -> Path:
    """Builds `built` again with a fault: one unit is compiled with `right` replaced by `wrong` in a header."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    text = (folder / "csrc/cuda" / header).read_text()
    assert text.count(right) == 1, (header, right)
    (folder / "csrc/cuda" / header).write_text(text.replace(right, wrong))
    for path in built.parent.glob("*.o"):
        shutil.copy(path, folder)
    compile_source(folder / "csrc/cuda" / unit, folder / f"{Path(unit).stem}.o", sanitizer)
    return build(folder, sanitizer, unit)


def environment(sanitizer: str) -> dict[str, str]:
    """The variables for a Python process that loads a library with this sanitizer: its runtime comes first.

    libstdc++ is next: without it AddressSanitizer has no __cxa_throw to call.
    """
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1:exitcode=66"}
    runtimes = [{"address": "libasan.so", "thread": "libtsan.so"}[sanitizer], "libstdc++.so.6"]
    paths = (subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in runtimes)
    return options | {"LD_PRELOAD": " ".join(paths)}


def run(library: Path, sanitizer: str, *ops: str) -> subprocess.CompletedProcess[str]:
    """Runs host_launches.py for all ops, or for these, under the sanitizer."""
    command = [sys.executable, str(HARNESS / "host_launches.py"), str(library), *ops]
    return subprocess.run(command, env=os.environ | environment(sanitizer), capture_output=True, text=True)
