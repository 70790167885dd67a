"""Builds csrc/ into atrous/libatrous.so (the ops) and atrous._C (build information); pyproject.toml has the rest.

Environment: ATROUS_SKIP_NATIVE=1 builds none of csrc. FORCE_CUDA=0 builds the CPU part alone even if torch is a CUDA
build; FORCE_CUDA=1 ends the build if the CUDA sources cannot be built. CXX, MAX_JOBS, NVCC_THREADS and
TORCH_CUDA_ARCH_LIST mean what they mean to torch.utils.cpp_extension. A missing prerequisite ends the build before it
starts, with one sentence.
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
# The GPU architectures that kernels are built for, and the first nvcc that supports each. wgmma and TMA need 9.0a.
ARCHITECTURES = {"8.0": (11, 0), "8.6": (11, 1), "8.9": (11, 8), "9.0a": (12, 0), "10.0": (12, 8), "12.0": (12, 8)}
# Both libraries need C++17 and Python's headers, besides torch.
PROBE = "#include <optional>\n#include <Python.h>\n"


def lines(path: str) -> list[str]:
    """The lines of a list file in csrc/ that are neither empty nor a comment."""
    text = (ROOT / path).read_text().splitlines()
    return [line.strip() for line in text if line.strip() and not line.startswith("#")]


def check_torch():
    """Returns torch, or ends the build with the remedy."""
    remedy = f"run `pip install torch` and then `pip install --no-build-isolation .`, {SKIP}"
    try:
        import torch
    except Exception as error:
        raise SystemExit(f"atrous: torch is needed to build and cannot be imported here ({error}): {remedy}.") from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
        raise SystemExit(f"atrous: torch >= 2.11 is needed to build and this is torch {torch.__version__}: {remedy}.")
    return torch


def check_compiler() -> None:
    """Ends the build unless the C++ compiler compiles C++17 and finds Python's headers."""
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
        errors = [line for line in result.stderr.splitlines() if "error" in line]
        reason = errors[0] if errors else f"exit {result.returncode}"
    raise SystemExit(
        f"atrous: the C++ compiler `{command}` cannot compile C++17 with Python's headers ({reason}): install g++ >= 9 "
        f"or clang and the Python headers (Debian: apt-get install g++ python3-dev), name the compiler in CXX, {SKIP}."
    )


def nvcc_version(cuda_home: str | None) -> str | None:
    """The CUDA version of the toolkit's nvcc, as '13.0'; None if there is no nvcc."""
    nvcc = shutil.which("nvcc", path=os.path.join(cuda_home, "bin")) if cuda_home else None
    if nvcc is None:
        return None
    version = re.search(
        r"release (\d+\.\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    )
    return version.group(1) if version else None


def with_cuda(torch_version: str, torch_cuda: str | None, nvcc: str | None, force: bool) -> bool:
    """True if CUDA sources are built: torch is a CUDA build and nvcc is installed. With force, it is an error if not.

    A toolkit of another major version would compile but fail to link or to load, so it ends the build here.
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


def cpu_sources() -> list[str]:
    """The sources of libatrous.so that every build compiles: csrc/ and csrc/cpu, without the Python module."""
    paths = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/**/*.cpp")]
    return sorted(str(path.relative_to(ROOT)) for path in paths if path.name != "module.cpp")


def cuda_sources(torch, cuda_home: str | None) -> list[str]:
    """The sources in csrc/cuda, or nothing if they cannot be built or FORCE_CUDA=0 excludes them."""
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
    """The include folders of CUTLASS, which the CUDA convolution uses, or ends the build with the remedy."""
    spec = importlib.util.find_spec("cutlass_library")
    source = Path(spec.origin).parent / "source" if spec and spec.origin else None
    if source is None or not (source / "include" / "cutlass" / "cutlass.h").exists():
        raise SystemExit(
            "atrous: the CUDA sources need the headers of CUTLASS, which are not found: run "
            f"`pip install --no-deps {' '.join(lines('requirements-cuda.txt'))}`, {CPU_ALONE}, {SKIP}."
        )
    return [str(source / "include"), str(source / "tools" / "util" / "include")]


def arch_list(nvcc: str) -> str:
    """The default TORCH_CUDA_ARCH_LIST: every architecture that nvcc supports, not only the GPU of this machine.

    PTX is added to the newest one, for newer GPUs. PTX of 9.0a would run on no other architecture.
    """
    version = tuple(map(int, nvcc.split(".")))
    supported = [arch for arch, since in ARCHITECTURES.items() if version >= since]
    newest = [arch for arch in supported if not arch.endswith("a")][-1]
    return ";".join(arch + "+PTX" * (arch == newest) for arch in supported)


def nvcc_flags() -> list[str]:
    """The compiler flags of csrc/cuda/*.cu. As in csrc/flags.txt, fma is used only where it is written."""
    defines = [flag for flag in lines("csrc/flags.txt") if flag.startswith("-D")]
    return ["-O3", "-std=c++17", "--fmad=false", "-DUSE_CUDA", *defines]


def extensions(torch) -> list[Extension]:
    """The two libraries. Neither links torch's Python library, and _C does not link torch at all."""
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
        [*cpu_sources(), *cuda],
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
    """setup()'s arguments for the libraries; empty with ATROUS_SKIP_NATIVE=1."""
    if os.environ.get("ATROUS_SKIP_NATIVE") == "1":
        return {}
    check_compiler()
    torch = check_torch()
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def get_ext_filename(self, ext_name: str) -> str:
            """Omits the Python ABI from the name of libatrous.so, which has no Python in it: C++ programs link it."""
            if ext_name.split(".")[-1] == "libatrous":
                return os.path.join(*ext_name.split(".")) + ".so"
            return super().get_ext_filename(ext_name)

    return {"ext_modules": extensions(torch), "cmdclass": {"build_ext": Build}}


def packages() -> list[str]:
    """The packages atrous (pyops/) and atrous.triton_kernels (triton_kernels/), and the folders in both."""
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
