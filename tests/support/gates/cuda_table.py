"""Writes the table of compiled CUDA kernels into a document: `cuda_table.py FILE` (`make kernel-table`)."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_gate as gate

CHIPS = (80, "90a", 100)
BLOCK = re.compile(r"(<!-- cuda: begin -->\n).*?(<!-- cuda: end -->)", re.DOTALL)
TYPES = {"BFloat16": "16 bit", "Half": "16 bit", "bfloat16_t": "16 bit", "half_t": "16 bit", "float": "fp32"}
TYPES |= {"double": "fp64"}
SOURCES = sorted(str(path.relative_to(gate.ROOT)) for path in gate.ROOT.glob("csrc/cuda/**/*.cu"))


def label(kernel: gate.Kernel) -> str:
    """The kernel's name, its storage type and, for a convolution, its tile."""
    name, _, arguments = kernel.name.partition("<")
    dtype = next((TYPES[word] for word in re.findall(r"\w+", arguments) if word in TYPES), "")
    if name == "conv_sm90_kernel":
        return f"conv_sm90, {dtype}, {'x'.join(arguments.split(', ')[1:3])}"
    tile = re.search(r"Shape<\w+, (\d+), (\d+), (?:\d+, ){4}(\d+)", arguments)
    stem = " by 4 channels" if tile and tile[3] == "4" and dtype != "fp32" else ""
    return f"{name.removesuffix('_kernel')}, {dtype}" + (f", {tile[1]}x{tile[2]}{stem}" if tile else "")


def cell(kernels: list[gate.Kernel]) -> str:
    """Registers (range over the variants), static shared memory, and the stack or spills if there are any."""
    registers, shared = (sorted({getattr(k, name) for k in kernels}) for name in ("registers", "shared"))
    text = f"{registers[0]}-{registers[-1]}" if len(registers) > 1 else f"{registers[0]}"
    text += f", {shared[-1] / 1024:.3g} KiB"
    spills = max(max(k.stack, k.spills) for k in kernels)
    return text + (f", {spills} B of stack" if spills else "")


def table() -> list[str]:
    """A row per kernel and dtype: its variants and, per chip, registers and static shared memory."""
    kernels: dict[str, dict[int | str, list[gate.Kernel]]] = {}
    for chip in CHIPS:
        for kernel in gate.compile(SOURCES, chip):
            if chip == "90a" or "sm90" not in kernel.name:  # those are empty for other chips
                kernels.setdefault(label(kernel), {}).setdefault(chip, []).append(kernel)
    lines = [
        "| kernel | variants | " + " | ".join(f"sm_{chip}" for chip in CHIPS) + " |",
        "|---" * (len(CHIPS) + 2) + "|",
    ]
    for name, chips in sorted(kernels.items()):
        cells = [cell(chips[chip]) if chip in chips else "" for chip in CHIPS]
        lines.append(f"| {name} | {len(chips['90a'])} | " + " | ".join(cells) + " |")
    return lines


def build_time() -> str:
    """A sentence with the time to compile csrc/cuda for the default architectures of setup.py."""
    setup, version = gate.setup(), gate.setup().nvcc_version(str(Path(gate.nvcc()).resolve().parents[1]))
    names = setup.arch_list(version)
    codes = []
    for arch, ptx in re.findall(r"([\d.]+a?)(\+PTX)?", names):
        arch = arch.replace(".", "")
        codes += [f"-gencode=arch=compute_{arch},code={code}_{arch}" for code in ("sm", *["compute"] * bool(ptx))]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(gate.PROCESSES) as pool:
        common = [gate.nvcc(), *setup.nvcc_flags(), *gate.includes(), *codes, "-c"]
        list(
            pool.map(lambda one: gate.run(*common, "-o", Path(folder, Path(one).name + ".o"), gate.ROOT / one), SOURCES)
        )
    seconds = time.monotonic() - started
    return f"nvcc {version} compiles all of it for {names} in {seconds:.0f} s, {gate.PROCESSES} sources at a time."


if __name__ == "__main__":
    if reason := gate.missing():
        sys.exit(reason)
    path = Path(sys.argv[1])
    lines = "\n".join([build_time(), "", *table()])
    path.write_text(BLOCK.sub(lambda match: match[1] + lines + "\n" + match[2], path.read_text()))
