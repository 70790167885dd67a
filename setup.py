"""Builds csrc/ into atrous/libatrous.so (the ops) and atrous._C (build information); pyproject.toml has the rest.

Environment: ATROUS_SKIP_NATIVE=1 builds none of csrc. FORCE_CUDA=0 builds its CPU part alone beside a CUDA build of
torch, FORCE_CUDA=1 refuses to do without the CUDA sources. CXX, MAX_JOBS, NVCC_THREADS and TORCH_CUDA_ARCH_LIST mean
what they mean to torch.utils.cpp_extension. Whatever is missing ends the build before it starts, in one sentence.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 11)
SKIP = "or set ATROUS_SKIP_NATIVE=1 to install without the C++ library"
CPU_ALONE = "set FORCE_CUDA=0 to build the CPU part alone"
# The cards that kernels are made for, and the first nvcc that knows each; 9.0a is what the products of 9.0 need.
CARDS = {"8.0": (11, 0), "8.6": (11, 1), "8.9": (11, 8), "9.0a": (12, 0), "10.0": (12, 8), "12.0": (12, 8)}
# What both libraries need of the machine beside torch.
PROBE = "#include <optional>\n#include <Python.h>\n"


def lines(path: str) -> list[str]:
    """The lines of a list file in csrc/ that are neither empty nor a comment."""
    text = (ROOT / path).read_text().splitlines()
    return [line.strip() for line in text if line.strip() and not line.startswith("#")]


def check_torch():
    """torch, or the end of the build with the remedy."""
    remedy = f"run `pip install torch` and then `pip install --no-build-isolation .`, {SKIP}"
    try:
        import torch
    except Exception as error:
        raise SystemExit(f"atrous: torch is needed to build and cannot be imported here ({error}): {remedy}.") from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
        raise SystemExit(f"atrous: torch >= 2.11 is needed to build and this is torch {torch.__version__}: {remedy}.")
    return torch


def check_compiler() -> None:
    """Ends the build unless the C++ compiler takes a line of C++17 and finds Python's headers."""
    command = os.environ.get("CXX", "c++")
    probe = [*shlex.split(command), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    probe.insert(-1, f"-I{sysconfig.get_paths()['include']}")
    try:
        result = subprocess.run(probe, input=PROBE, capture_output=True, text=True)
    except OSError as error:
        reason = error.strerror
    else:
        if result.returncode == 0:
            return
        found = [line for line in result.stderr.splitlines() if "error" in line] or [f"exit {result.returncode}"]
        reason = found[0]
    raise SystemExit(
        f"atrous: the C++ compiler `{command}` cannot compile C++17 with Python's headers ({reason}): install g++ >= 9 "
        f"or clang and the Python headers (Debian: apt-get install g++ python3-dev), name the compiler in CXX, {SKIP}."
    )


def nvcc_version(cuda_home: str | None) -> str | None:
    """'13.0' for the nvcc of that toolkit, None where there is none."""
    nvcc = shutil.which("nvcc", path=os.path.join(cuda_home, "bin")) if cuda_home else None
    if nvcc is None:
        return None
    found = re.search(r"release (\d+\.\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    return found.group(1) if found else None


def with_cuda(torch_version: str, torch_cuda: str | None, nvcc: str | None, force: bool) -> bool:
    """Whether CUDA sources are built: torch is a CUDA build and its nvcc is there. FORCE_CUDA=1 refuses to do without.

    A toolkit of another major version would compile, then fail to link or to load, so it ends the build here.
    """
    if torch_cuda and nvcc and torch_cuda.split(".")[0] != nvcc.split(".")[0]:
        raise SystemExit(
            f"atrous: torch {torch_version} was built with CUDA {torch_cuda} and nvcc is of CUDA {nvcc}: set CUDA_HOME "
            f"to a CUDA {torch_cuda} toolkit, install a torch that was built for CUDA {nvcc}, {CPU_ALONE}, {SKIP}."
        )
    if force and not (torch_cuda and nvcc):
        lacks = f"nvcc is not found for its CUDA {torch_cuda}" if torch_cuda else "it is a CPU build"
        raise SystemExit(
            f"atrous: FORCE_CUDA=1 asks for the CUDA sources, but torch is {torch_version} and {lacks}: install a CUDA "
            f"build of torch and the CUDA toolkit of its version (CUDA_HOME names it), or unset FORCE_CUDA."
        )
    return bool(torch_cuda and nvcc)


def cuda_sources(torch, cuda_home: str | None) -> list[str]:
    """The sources in csrc/cuda where they can be built and FORCE_CUDA=0 does not leave them out, else nothing."""
    asked = os.environ.get("FORCE_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"atrous: FORCE_CUDA: expected 0, 1 or nothing, got {asked!r}.")
    if asked == "0":
        return []
    force = asked == "1"
    sources = sorted(
        str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cuda/**/*.c[pu]*") if path.suffix != ".cuh"
    )
    if not (sources or force):
        return []
    return sources if with_cuda(torch.__version__, torch.version.cuda, nvcc_version(cuda_home), force) else []


def cutlass_include() -> list[str]:
    """The headers of the CUDA convolution's main loop and of their tools, or the end of the build with the remedy."""
    spec = importlib.util.find_spec("cutlass_library")
    source = Path(spec.origin).parent / "source" if spec and spec.origin else None
    if source is None or not (source / "include" / "cutlass" / "cutlass.h").exists():
        raise SystemExit(
            "atrous: the CUDA sources need the headers of CUTLASS, which are not found: run "
            f"`pip install --no-deps {' '.join(lines('requirements-cuda.txt'))}`, {CPU_ALONE}, {SKIP}."
        )
    return [str(source / "include"), str(source / "tools" / "util" / "include")]


def arch_list(nvcc: str) -> str:
    """What is built where nobody says TORCH_CUDA_ARCH_LIST: a wheel is for every card, not for the one at hand.

    PTX is for newer cards, and that of 9.0a is for no other.
    """
    version = tuple(map(int, nvcc.split(".")))
    cards = [card for card, since in CARDS.items() if version >= since]
    newest = [card for card in cards if not card.endswith("a")][-1]
    return ";".join(card + "+PTX" * (card == newest) for card in cards)


def nvcc_flags() -> list[str]:
    """What each csrc/cuda/*.cu is compiled with; fma only where it is written, as in csrc/flags.txt."""
    defines = [flag for flag in lines("csrc/flags.txt") if flag.startswith("-D")]
    return ["-O3", "-std=c++17", "--fmad=false", "-DUSE_CUDA", *defines]


def extensions(torch) -> list[Extension]:
    """The two libraries. Neither is linked to torch's Python part, and _C not to torch at all."""
    from torch.utils.cpp_extension import CUDA_HOME, include_paths, library_paths

    flags = [*lines("csrc/flags.txt"), "-g0"]
    cuda = cuda_sources(torch, CUDA_HOME)
    device = "cuda" if cuda else "cpu"
    if cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", arch_list(nvcc_version(CUDA_HOME)))
    build = {
        "ATROUS_TORCH": torch.__version__,
        "ATROUS_TORCH_TARGET": ".".join(map(str, MINIMUM_TORCH)),
        "ATROUS_CUDA": (torch.version.cuda or "") if cuda else "",
        "ATROUS_ARCH_LIST": os.environ["TORCH_CUDA_ARCH_LIST"] if cuda else "",
        "ATROUS_FLAGS": " ".join(flags),
    }
    ops = Extension(
        "atrous.libatrous",
        [*lines("csrc/sources.txt"), *cuda],
        include_dirs=[*include_paths(device), *(cutlass_include() if cuda else [])],
        library_dirs=library_paths(device),
        libraries=["torch_cpu", *(["torch_cuda", "cudart"] if cuda else [])],
        extra_compile_args={
            "cxx": flags + (["-DUSE_CUDA"] if cuda else []),
            "nvcc": [*nvcc_flags(), f"--threads={os.environ.get('NVCC_THREADS', '1')}"],
        },
        language="c++",
    )
    info = Extension(
        "atrous._C",
        ["csrc/module.cpp"],
        include_dirs=include_paths(),  # torch's wheel carries pybind11's headers, which refuse TORCH_TARGET_VERSION
        define_macros=[(name, f'"{value}"') for name, value in build.items()],
        extra_compile_args={"cxx": [flag for flag in flags if "TORCH_TARGET_VERSION" not in flag]},
        language="c++",
    )
    return [ops, info]


def native() -> dict:
    """setup()'s arguments for the built libraries; nothing under ATROUS_SKIP_NATIVE=1."""
    if os.environ.get("ATROUS_SKIP_NATIVE") == "1":
        return {}
    check_compiler()
    torch = check_torch()
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def get_ext_filename(self, ext_name: str) -> str:
            """libatrous.so holds no Python, so its name has no Python ABI in it: C++ programs link it."""
            if ext_name.split(".")[-1] == "libatrous":
                return os.path.join(*ext_name.split(".")) + ".so"
            return super().get_ext_filename(ext_name)

    return {"ext_modules": extensions(torch), "cmdclass": {"build_ext": Build}}


def packages() -> list[str]:
    """atrous (pyops/), atrous.triton_kernels (triton_kernels/) and the folders in both."""
    inits = [*ROOT.glob("pyops/**/__init__.py"), *ROOT.glob("triton_kernels/**/__init__.py")]
    folders = sorted(path.parent.relative_to(ROOT).parts for path in inits)
    return [".".join(["atrous", *(parts[1:] if parts[0] == "pyops" else parts)]) for parts in folders]


if __name__ == "__main__":
    setup(
        packages=packages(),
        package_dir={"atrous": "pyops", "atrous.triton_kernels": "triton_kernels"},
        package_data={
            "atrous": ["schemas.def", "py.typed"],
            "atrous.tuning": ["tables/*.json"],
            "atrous.triton_kernels": ["gpus.def"],
        },
        include_package_data=False,
        **native(),
    )
