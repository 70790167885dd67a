"""Describe a bundle: its target, the versions in a Python environment, the sources, and the key over all of them."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[3]

from bench import record  # noqa: E402

SOURCES = ("csrc", "pyops", "triton_kernels", "tests", "bench", "setup.py", "pyproject.toml")
EXCLUDED = (".so", ".pyc", ".json", ".png", ".md")  # neither compiled nor run


class BundleError(Exception):
    """An error that the user sees as one sentence."""


class Target(NamedTuple):
    """The target of a bundle. arch: as in TORCH_CUDA_ARCH_LIST, for example 9.0a; the others are versions."""

    arch: str
    python: str
    torch: str
    triton: str

    @property
    def capability(self) -> int:
        return int(self.arch.rstrip("af").replace(".", ""))

    @property
    def name(self) -> str:
        return f"gpu-bundle-sm{self.capability}-py{self.python}-torch{self.torch}-triton{self.triton}"


def version(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "none"


def compiler(capability: int) -> str:
    """Hash of the common part of every key in Triton's cache: Triton's files, ptxas and environment variables. Triton
    silently ignores cache entries of another compiler."""
    try:
        from triton._C.libtriton import get_cache_invalidating_env_vars
        from triton.backends.compiler import GPUTarget
        from triton.backends.nvidia.compiler import CUDABackend
        from triton.runtime.cache import triton_key
    except ImportError:  # no Triton, or an older one, whose version differs anyway
        return "none"
    parts = (triton_key(), CUDABackend(GPUTarget("cuda", capability, 32)).hash(), get_cache_invalidating_env_vars())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def here(capability: int) -> dict[str, Any]:
    """Versions of this Python and its packages, and the hash of its Triton as a compiler for that chip."""
    cuda = None
    if version("torch") != "none":
        import torch

        cuda = torch.version.cuda
    return {
        "python": "{}.{}".format(*sys.version_info), "torch": version("torch"), "triton": version("triton"),
        "cuda": cuda, "compiler": compiler(capability), "packages": sysconfig.get_paths()["purelib"],
    }  # fmt: skip


PROBE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from bench.gpu.bundle import facts
print(json.dumps(facts.here(int(sys.argv[2]))))
"""


def probe(interpreter: Path | str, capability: int) -> dict[str, Any]:
    """here() in another Python. Raises BundleError."""
    command = [interpreter, "-c", PROBE, ROOT, str(capability)]
    try:
        run = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BundleError(f"interpreter: expected a Python, got {str(interpreter)!r}: {error.strerror}") from None
    if run.returncode:
        message = run.stderr.strip().rpartition("\n")[2]
        raise BundleError(f"interpreter: expected a Python that imports torch, got {str(interpreter)!r}: {message}")
    return json.loads(run.stdout)


def known_archs() -> tuple[str, ...]:
    """The architectures that setup.py builds for."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ARCHITECTURES":
            return tuple(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no ARCHITECTURES")


def toolkit() -> tuple[Path, str]:
    """CUDA_HOME and the version of its nvcc. Raises BundleError."""
    on_path = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", on_path and str(Path(on_path).resolve().parents[1])]
    for home in (Path(home) for home in homes if home):
        if (nvcc := home / "bin" / "nvcc").exists():
            text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
            if version := re.search(r"release (\d+\.\d+)", text):
                return home, version[1]
        if os.environ.get("CUDA_HOME"):
            break
    raise BundleError("nvcc: expected CUDA's compiler in CUDA_HOME, /usr/local/cuda or on the PATH, got none")


def require_arch(target: Target) -> None:
    """Raises BundleError unless setup.py builds csrc for this architecture."""
    if target.arch not in known_archs():
        raise BundleError(f"arch: expected one of {', '.join(known_archs())}, got {target.arch!r}")


def require(target: Target, facts: dict[str, Any]) -> None:
    """Raises BundleError unless the Python has the versions of the target."""
    for name in ("python", "torch", "triton"):
        if (wanted := getattr(target, name)) != facts[name]:
            raise BundleError(f"{name}: expected {wanted}, got {facts[name]} in the interpreter")


def toolchain(target: Target, facts: dict[str, Any]) -> dict[str, str]:
    """The compilers of csrc for this target and their versions. Raises BundleError if csrc cannot be compiled."""
    require(target, facts)
    if facts["cuda"] is None:
        raise BundleError(f"torch: expected a CUDA build of {target.torch}, got a CPU build")
    home, nvcc = toolkit()
    if nvcc.partition(".")[0] != facts["cuda"].partition(".")[0]:
        expected = f"CUDA {facts['cuda']} as torch {target.torch} has it"
        raise BundleError(f"nvcc: expected {expected}, got CUDA {nvcc} in {home}")
    gcc = subprocess.run([os.environ.get("CXX", "c++"), "-dumpfullversion"], capture_output=True, text=True).stdout
    return {"nvcc": nvcc, "c++": gcc.strip(), "cuda_home": str(home)}


def source() -> str:
    """Hash of the sources of the wheel, the tests and the benchmarks. Files that a run writes are excluded: its log
    exists before the bundle is installed."""
    digest = hashlib.sha256()
    results = [ROOT / name for name in record.RESULTS]
    files = [path for name in SOURCES for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    for path in sorted(files):
        if path.is_file() and path.suffix not in EXCLUDED and not any(folder in path.parents for folder in results):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def require_source(manifest: dict[str, Any]) -> None:
    """Raises BundleError unless a bundle was built from the sources of this checkout."""
    if manifest["source"] != (sources := source()):
        raise BundleError(
            f"commit: the bundle is of {manifest['commit']} (sources {manifest['source']}), here is "
            f"{record.commit()} (sources {sources})"
        )


def manifest(target: Target, facts: dict[str, Any], tools: dict[str, str]) -> dict[str, Any]:
    """The first entries of bundle.json. key: a hash over all of them except the commit, to cache bundles by."""
    about = {**target._asdict(), "cuda": facts["cuda"], "compiler": facts["compiler"], "source": source()}
    about |= {name: tools[name] for name in ("nvcc", "c++")}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return {"key": f"{target.name}-{key}", **about, "commit": record.commit()}
