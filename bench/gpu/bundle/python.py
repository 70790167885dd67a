"""The Pythons that a bundle is built and checked with, and the wheel that goes into it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from bench.gpu.bundle import facts as bundle_facts
from bench.gpu.bundle.facts import ROOT, Mistake, Target

BUILD = ROOT / "build" / "gpu-bundle"
NEEDS = ("numpy", "hypothesis", "pytest", "pytest-xdist", "ninja", "setuptools==81.0.0", "wheel")


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


def headers(python: Path) -> Path:
    """CUTLASS, which pip fetches once."""
    folder = BUILD / "cutlass"
    if not (folder / "cutlass_library").exists():
        needed = ["-r", ROOT / "requirements-cuda.txt"]
        run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *needed], "CUTLASS")
    return folder


def download(target: Target, named: Path | None) -> int:
    """Everything that `build` fetches, so that nothing but building is left to it."""
    bundle_facts.require_arch(target)
    print(f"python: {(python := interpreter(target, named))}\nheaders: {headers(python)}")
    return 0


def environment(base: Path, packages: str, folder: Path) -> Path:
    """A fresh Python that sees the packages of another one, and whatever is installed into it first."""
    shutil.rmtree(folder, ignore_errors=True)
    run([base, "-m", "venv", "--without-pip", folder], "venv")
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "shared.pth").write_text(packages + "\n")
    return folder / "bin" / "python"


def wheel(python: Path, target: Target, cuda_home: str, folder: Path) -> Path:
    """The package for that chip; objects that are newer than their sources are kept by setuptools and ninja."""
    for stale in (ROOT / "build").glob("lib.*"):
        shutil.rmtree(stale)
    build = {
        "TORCH_CUDA_ARCH_LIST": target.arch, "FORCE_CUDA": "1", "CUDA_HOME": cuda_home, "PIP_NO_INDEX": "1",
        "PYTHONPATH": str(headers(python)), "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    options = ("--quiet", "--no-build-isolation", "--no-deps", "-w", folder)
    run([python, "-m", "pip", "wheel", *options, ROOT], "wheel", **build)
    (made,) = folder.glob("atrous-*.whl")
    return made
