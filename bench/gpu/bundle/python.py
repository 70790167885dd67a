"""Create the Python environments that build and check a bundle, and build its wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from bench.gpu.bundle import facts as bundle_facts
from bench.gpu.bundle.facts import ROOT, BundleError, Target

BUILD = ROOT / "build" / "gpu-bundle"
NEEDS = ("numpy", "hypothesis", "pytest", "pytest-xdist", "ninja", "setuptools==81.0.0", "wheel")


def run(command: list[Any], what: str, **more: str) -> None:
    """Runs a command with its output shown. Raises BundleError if it fails."""
    if status := subprocess.run([str(word) for word in command], cwd=ROOT, env=os.environ | more).returncode:
        raise BundleError(f"{what}: expected exit status 0, got {status}")


def interpreter(target: Target, named: Path | None) -> Path:
    """The Python to build with: the named one, else a virtual environment that pip fills."""
    if named is not None:
        return named
    folder = BUILD / f"python-{target.python}-torch-{target.torch}-triton-{target.triton}"
    if not (folder / "complete").exists():
        if (base := shutil.which(f"python{target.python}")) is None:
            raise BundleError(f"python: expected python{target.python} on the PATH or --interpreter, got neither")
        run([base, "-m", "venv", folder], "venv")
        packages = (f"torch=={target.torch}", f"triton=={target.triton}", *NEEDS)
        run([folder / "bin/python", "-m", "pip", "install", "--quiet", *packages], "pip install")
        (folder / "complete").touch()
    return folder / "bin" / "python"


def headers(python: Path) -> Path:
    """The folder with the headers of CUTLASS, which pip downloads once."""
    folder = BUILD / "cutlass"
    if not (folder / "cutlass_library").exists():
        needed = ["-r", ROOT / "requirements-cuda.txt"]
        run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *needed], "CUTLASS")
    return folder


def download(target: Target, named: Path | None) -> int:
    """Downloads everything that `build` needs, so that `build` needs no network."""
    bundle_facts.require_arch(target)
    print(f"python: {(python := interpreter(target, named))}\nheaders: {headers(python)}")
    return 0


def environment(base: Path, packages: str, folder: Path) -> Path:
    """A fresh virtual environment that also sees the packages of another; its own packages take precedence."""
    shutil.rmtree(folder, ignore_errors=True)
    run([base, "-m", "venv", "--without-pip", folder], "venv")
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "shared.pth").write_text(packages + "\n")
    return folder / "bin" / "python"


def wheel(python: Path, target: Target, cuda_home: str, folder: Path) -> Path:
    """Builds the wheel for that chip; setuptools and ninja reuse objects that are newer than their sources."""
    for stale in (ROOT / "build").glob("lib.*"):
        shutil.rmtree(stale)
    build = {
        "TORCH_CUDA_ARCH_LIST": target.arch, "FORCE_CUDA": "1", "CUDA_HOME": cuda_home, "PIP_NO_INDEX": "1",
        "PYTHONPATH": str(headers(python)), "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    options = ("--quiet", "--no-build-isolation", "--no-deps", "-w", folder)
    run([python, "-m", "pip", "wheel", *options, ROOT], "wheel", **build)
    (built,) = folder.glob("atrous-*.whl")
    return built
