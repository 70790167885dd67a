"""What a bundle is for and what it was built from: the target, the facts of a Python, and the key over both."""

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
BUILT = (".so", ".pyc", ".json", ".png", ".md")  # neither compiled nor run


class Mistake(Exception):
    """Something to tell the user in one sentence."""


class Target(NamedTuple):
    """arch: as TORCH_CUDA_ARCH_LIST names it, 9.0a; the others are versions."""

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
    """What the key of every kernel in Triton's cache begins with: Triton's own files, ptxas, and what the environment
    changes about the code. A cache that another one filled is not read, without a word."""
    try:
        from triton._C.libtriton import get_cache_invalidating_env_vars
        from triton.backends.compiler import GPUTarget
        from triton.backends.nvidia.compiler import CUDABackend
        from triton.runtime.cache import triton_key
    except ImportError:  # no Triton, or an older one: the versions differ then
        return "none"
    parts = (triton_key(), CUDABackend(GPUTarget("cuda", capability, 32)).hash(), get_cache_invalidating_env_vars())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def here(capability: int) -> dict[str, Any]:
    """Versions of this Python and of what is installed in it, and its Triton as the compiler for that chip."""
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
    """What `here` answers in another Python. Raises Mistake."""
    command = [interpreter, "-c", PROBE, ROOT, str(capability)]
    try:
        run = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Mistake(f"interpreter: expected a Python, got {str(interpreter)!r}: {error.strerror}") from None
    if run.returncode:
        told = run.stderr.strip().rpartition("\n")[2]
        raise Mistake(f"interpreter: expected a Python that imports torch, got {str(interpreter)!r}: {told}")
    return json.loads(run.stdout)


def known_archs() -> tuple[str, ...]:
    """Those that setup.py builds for."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CARDS":
            return tuple(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no CARDS")


def toolkit() -> tuple[Path, str]:
    """CUDA_HOME and the version of its nvcc. Raises Mistake."""
    found = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", found and str(Path(found).resolve().parents[1])]
    for home in (Path(home) for home in homes if home):
        if (nvcc := home / "bin" / "nvcc").exists():
            told = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
            if version := re.search(r"release (\d+\.\d+)", told):
                return home, version[1]
        if os.environ.get("CUDA_HOME"):
            break
    raise Mistake("nvcc: expected CUDA's compiler in CUDA_HOME, /usr/local/cuda or on the PATH, found none")


def require_arch(target: Target) -> None:
    """Raises Mistake unless csrc is made for it."""
    if target.arch not in known_archs():
        raise Mistake(f"arch: expected one of {', '.join(known_archs())}, got {target.arch!r}")


def require(target: Target, found: dict[str, Any]) -> None:
    """Raises Mistake unless this Python is the one that the target asks for."""
    for name in ("python", "torch", "triton"):
        if (wanted := getattr(target, name)) != found[name]:
            raise Mistake(f"{name}: expected {wanted}, got {found[name]} in the interpreter")


def toolchain(target: Target, found: dict[str, Any]) -> dict[str, str]:
    """What compiles csrc for this target. Raises Mistake if it cannot."""
    require(target, found)
    if found["cuda"] is None:
        raise Mistake(f"torch: expected a CUDA build of {target.torch}, got a CPU build")
    home, nvcc = toolkit()
    if nvcc.partition(".")[0] != found["cuda"].partition(".")[0]:
        raise Mistake(f"nvcc: expected CUDA {found['cuda']} as torch {target.torch} has it, got CUDA {nvcc} in {home}")
    gcc = subprocess.run([os.environ.get("CXX", "c++"), "-dumpfullversion"], capture_output=True, text=True).stdout
    return {"nvcc": nvcc, "c++": gcc.strip(), "cuda_home": str(home)}


def source() -> str:
    """A name for the sources as they are: what the wheel is made of, and what asks for kernels. What a run writes is
    none of them: its log is there before the bundle is installed."""
    digest = hashlib.sha256()
    results = [ROOT / name for name in record.RESULTS]
    files = [path for name in SOURCES for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    for path in sorted(files):
        if path.is_file() and path.suffix not in BUILT and not any(folder in path.parents for folder in results):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def manifest(target: Target, found: dict[str, Any], tools: dict[str, str]) -> dict[str, Any]:
    """What bundle.json begins with. key: of a cache of bundles, over all of it but the commit."""
    about = {**target._asdict(), "cuda": found["cuda"], "compiler": found["compiler"], "source": source()}
    about |= {name: tools[name] for name in ("nvcc", "c++")}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return {"key": f"{target.name}-{key}", **about, "commit": record.commit()}
