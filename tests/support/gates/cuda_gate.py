"""Compiles csrc/cuda for any GPU and reads each kernel's registers, stack, spills and instructions, without a GPU.

`compile(sources, arch)` returns a Kernel for each entry function; `missing()` returns what this machine lacks for it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROCESSES = 2  # each needs a core and about a gigabyte
WARNINGS = ("warning", "error")


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel. name: demangled, without its parameters. Sizes are bytes per thread.

    shared: static shared memory per block.
    opcodes: counts of each instruction by the name before its first dot. Those that move 16 bytes count again as
        LDG.128, those that gather or write to a cluster as UTMALDG.IM2COL and UTMALDG.MULTICAST.
    threads: the most per block, by its launch bounds. serial: true if ptxas serializes the wgmma instructions.
    """

    name: str
    source: str
    arch: int | str
    registers: int
    stack: int
    spills: int
    shared: int
    opcodes: Counter
    threads: int
    serial: bool


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(home, "bin"))


def disassembler() -> str | None:
    """The path of cuobjdump: the toolkit's, or the one in Triton's wheel."""
    spec = importlib.util.find_spec("triton")
    wheel = Path(spec.origin).parent / "backends/nvidia/bin" if spec and spec.origin else Path()
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(wheel))


def missing() -> str | None:
    """Returns why nothing can be compiled here, or None."""
    if nvcc() is None:
        return "nvcc is not found: put it on the PATH or name its toolkit in CUDA_HOME"
    if disassembler() is None:
        return "cuobjdump is not found: it comes with the CUDA toolkit and with triton"
    return None


@lru_cache
def setup():
    """setup.py as a module, for its compiler flags and paths."""
    spec = importlib.util.spec_from_file_location("atrous_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache
def includes() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    folders = [*include_paths(), *setup().cutlass_include()]
    return [flag for folder in folders for flag in ("-isystem", folder)]


def compile(sources: list[str], arch: int | str) -> list[Kernel]:
    """Compiles `sources`, paths from the repository's root, for sm_<arch> (80, "90a"), two at a time."""
    with ThreadPoolExecutor(PROCESSES) as pool:
        return [kernel for kernels in pool.map(lambda source: build(source, arch), sources) for kernel in kernels]


@cache
def build(source: str, arch: int | str) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "code.cubin")
        log = run(nvcc(), *setup().nvcc_flags(), *includes(), f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v",
                   "-o", cubin, ROOT / source).stderr  # fmt: skip
        usage = resources(log)
        if not usage:
            return []
        codes = opcodes(run(disassembler(), "--dump-sass", cubin).stdout)
        bounds = threads(run(disassembler(), "-elf", cubin).stdout)
    names = demangle(list(usage))
    serial = set(re.findall(r"wgmma.mma_async instructions are serialized .*'(\w+)'", log))
    return [
        Kernel(names[name], source, arch, *numbers, codes.get(name, Counter()), bounds.get(name, 1024), name in serial)
        for name, numbers in usage.items()
    ]


def run(*command) -> subprocess.CompletedProcess:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{command} exits {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def resources(log: str) -> dict[str, tuple[int, int, int, int]]:
    """Maps entry functions to registers, stack, spilled bytes and static shared memory, from the log of `ptxas -v`."""
    entries, usage, name = set(re.findall(r"Compiling entry function '(\w+)'", log)), {}, ""
    stack = spills = 0
    for line in log.splitlines():
        if match := re.search(r"(?:Compiling entry function '|Function properties for )(\w+)", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        elif (match := re.search(r"Used (\d+) registers", line)) and name in entries:
            shared = re.search(r"(\d+) bytes smem", line)
            usage[name] = int(match[1]), stack, spills, int(shared[1]) if shared else 0
    return usage


def threads(elf: str) -> dict[str, int]:
    """Maps entry functions to the most threads per block."""
    sections = (section.partition("\n") for section in elf.split(".nv.info.")[1:])
    limits = {name.strip(): re.search(r"EIATTR_MAX_THREADS\s.*\s+Value:\s+0x(\w+)", text) for name, _, text in sections}
    return {name: int(match[1], 16) for name, match in limits.items() if match}


def opcodes(sass: str) -> dict[str, Counter]:
    counts: dict[str, Counter] = {}
    for function in sass.split("Function : ")[1:]:
        name, _, code = function.partition("\n")
        counts[name.strip()] = Counter()
        for opcode, suffix in re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][A-Z0-9]*)([.\w]*)", code, re.M):
            kinds = [f"{opcode}{kind}" for kind in (".128", ".IM2COL", ".MULTICAST") if kind in suffix]
            counts[name.strip()].update([opcode, *kinds])
    return counts


def demangle(names: list[str]) -> dict[str, str]:
    """Maps mangled names to shortened ones. Without c++filt (binutils, which every g++ brings) names stay mangled."""
    tool = shutil.which("c++filt")
    full = run(tool, *names).stdout.splitlines() if tool else names
    return {name: shorten(text) for name, text in zip(names, full)}


def shorten(name: str) -> str:
    """The name and its template arguments, without the result type, the parameters and namespaces."""
    end, depth = len(name), 0
    text = re.sub(r"\(anonymous namespace\)::", "", name)
    text = re.sub(r"\((?:[\w:]+)\)(?=-?\d)", "", text)  # (atrous::Slope)2 -> 2
    for at, letter in enumerate(text):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            end = at
            break
    return re.sub(r"\b\w+::", "", text[:end].removeprefix("void "))
