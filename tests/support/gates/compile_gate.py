"""Compiles Triton kernels for other chips without a GPU and checks the compiled code.

A Variant is one kernel with everything its code depends on; `capture` reads it from a launcher, so the gate compiles
what a call would. `build` returns a Report of the code, `check` the complaints about it, [] if it passes.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from pkgutil import resolve_name

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type
from triton.tools.tensor_descriptor import TensorDescriptor

# Bytes of shared memory that a block may use (CUDA C++ programming guide, technical specifications).
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
ACCESS_BYTES = 16
# Slopes and residual of an epilogue. The first two need the most registers.
FULLEST = (("tensor", "before"), ("random", "before"))
OTHERS = tuple(pair for pair in product(("relu", "number", "tensor", "random"), ("none", "before", "after"))
               if pair not in FULLEST)  # fmt: skip
TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Variant:
    """One kernel, everything its code depends on, and the requirements on that code.

    kernel: "module:name". aligned: arguments divisible by 16. wide: pointers all of whose accesses must move 16 bytes.
    most: pointer -> most accesses in a thread's code. patterns: regular expressions that must match in the PTX;
    loop_patterns: those that must match in one of its loops (the chip's instruction: mma.sync, wgmma, tcgen05.mma).
    """

    kernel: str
    signature: dict[str, str]
    constants: dict[str, object]
    aligned: tuple[str, ...]
    options: dict[str, object]
    wide: tuple[str, ...] = ()
    most: dict[str, int] = field(default_factory=dict)
    patterns: tuple[str, ...] = ()
    loop_patterns: tuple[str, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Report:
    registers: int
    stack: int  # bytes per thread, register spills included
    shared: int
    accesses: dict[str, Counter]  # pointer -> bytes of an access -> number of such accesses in the code
    ptx: str

    @property
    def loops(self) -> str:
        """The PTX between each label and a branch back to it, without loops that store, such as the one over tiles."""
        lines, labels, loops = self.ptx.splitlines(), {}, []
        for number, line in enumerate(lines):
            if match := re.match(r"(\$L\w+):", line):
                labels[match[1]] = number
            elif (match := re.search(r"\bbra(?:\.uni)?\s+(\$L\w+);", line)) and match[1] in labels:
                loops.append("\n".join(lines[labels[match[1]] : number]))
        return "\n".join(loop for loop in loops if not re.search(r"\bst\.global|tensor\.\dd\.global\.shared", loop))


class Recorder:
    """Stands in for a kernel and records the arguments of its launch."""

    def __init__(self, kernel: triton.JITFunction):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            names = self.kernel.arg_names
            self.arguments = dict(zip(names, args)) | {k: v for k, v in kwargs.items() if k in names}
            self.options = {k: v for k, v in kwargs.items() if k not in names}

        return launch


def capture(recorder: Recorder, module: str, **requirements) -> Variant:
    """The variant that Triton would compile for the recorded launch, with these requirements."""
    signature, constants, aligned = {}, {}, []
    for parameter in recorder.kernel.params:
        name, value = parameter.name, recorder.arguments[parameter.name]
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, TensorDescriptor):
            signature[name], number = mangle_type(value), None
        elif isinstance(value, torch.Tensor):
            signature[name], number = TYPES[value.dtype], value.data_ptr()
        else:
            signature[name], number = parameter.annotation_type or ("i32" if abs(value) < 2**31 else "i64"), value
        if isinstance(number, int) and number % 16 == 0 and not parameter.do_not_specialize:
            aligned.append(name)
    kernel = f"{module}:{recorder.kernel.__name__}"
    return Variant(kernel, signature, constants, tuple(aligned), recorder.options, **requirements)


def build(variant: Variant, capability: int) -> Report:
    """Compiles the variant by Triton and ptxas alone, without a GPU or a driver."""
    kernel = resolve_name(variant.kernel)
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(kernel, variant.signature, variant.constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=variant.options)
    usage, ptx = resource_usage(compiled.asm["cubin"]), compiled.asm["ptx"]
    parameters = [name for name, kind in variant.signature.items() if kind != "constexpr"]
    accesses = {}
    if not any(kind.startswith("tensordesc") for kind in variant.signature.values() if isinstance(kind, str)):
        accesses = {parameters[i]: widths for i, widths in global_accesses(ptx).items()}  # one parameter per argument
    return Report(usage["REG"], usage["STACK"] + usage["LOCAL"], compiled.metadata.shared, accesses, ptx)


def resource_usage(cubin: bytes) -> dict[str, int]:
    """The numbers of `cuobjdump --dump-resource-usage`: REG, STACK, LOCAL, ..."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        text = subprocess.run([tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}


def global_accesses(ptx: str) -> dict[int, Counter]:
    """Parameter -> Counter of access widths in bytes. Every address is traced back to the pointer it came from."""
    origin: dict[str, set[int]] = {}
    accesses: dict[int, Counter] = {}
    for last in (False, True):  # twice: a loop's registers are written after they are read
        for line in ptx.splitlines():
            if match := re.search(r"ld\.param\.b64\s+(%rd\d+), \[\w+_param_(\d+)\]", line):
                origin[match[1]] = {int(match[2])}
            elif match := re.search(r"\b(?:ld|st)\.global\S*?(?:\.v(\d))?\.[a-z](\d+)\b.*\[\s*(%rd\d+)", line):
                for parameter in origin.get(match[3], ()) if last else ():
                    accesses.setdefault(parameter, Counter())[int(match[1] or 1) * int(match[2]) // 8] += 1
            elif match := re.search(r"\bcp\.async\.c[ag]\.shared\.global.*\], \[\s*(%rd\d+).*?\], (\w+)", line):
                for parameter in origin.get(match[1], ()) if last else ():
                    accesses.setdefault(parameter, Counter())[int(match[2], 0)] += 1
            elif (registers := re.findall(r"%rd\d+", line)) and not re.search(r"\b(ld|st|atom|red)\.", line):
                sources = set().union(*(origin.get(register, ()) for register in registers[1:]))
                origin[registers[0]] = origin.get(registers[0], set()) | sources
    return accesses


def check(variant: Variant, capability: int, report: Report) -> list[str]:
    """Complaints about the code, each with the expected and the actual value."""
    limit, label = SHARED_MEMORY[capability], f"{variant.label} sm_{capability}"
    wrong = []
    if report.stack:
        wrong.append(f"{label}: expected no spills, got {report.stack} bytes with {report.registers} registers")
    if report.shared > limit:
        wrong.append(f"{label}: expected at most {limit} bytes of shared memory, got {report.shared}")
    for name in variant.wide:
        widths = report.accesses.get(name, Counter())
        if not widths or min(widths) < ACCESS_BYTES:
            wrong.append(f"{label}: {name}: expected accesses of {ACCESS_BYTES} bytes, got {dict(widths) or 'none'}")
    for name, most in variant.most.items():
        if (count := report.accesses.get(name, Counter()).total()) > most:
            wrong.append(f"{label}: {name}: expected at most {most} accesses per thread, got {count}")
    wrong += [f"{label}: expected {p!r} in the PTX" for p in variant.patterns if not re.search(p, report.ptx)]
    loops = report.loops if variant.loop_patterns else ""
    wrong += [f"{label}: expected {p!r} in a loop" for p in variant.loop_patterns if not re.search(p, loops)]
    return wrong


def epilogues(turn: int, whole: bool) -> tuple[tuple[str, str], ...]:
    """Slopes and residuals to compile a config with, for one dtype and chip: the fullest, and two of the ten others in
    turn, so that five turns cover all of them. whole: all of them."""
    return FULLEST + (OTHERS if whole else OTHERS[turn % 5 :: 5])


def pinned(package: str) -> str:
    """The package's version in requirements-dev.txt."""
    text = (Path(__file__).parents[3] / "requirements-dev.txt").read_text()
    version = re.search(rf"^{package}==(.*)$", text, re.MULTILINE)
    assert version, package
    return version[1]


@lru_cache
def workers(count: int) -> ProcessPoolExecutor:
    """A pool of `count` processes, spawned because torch's threads do not survive a fork."""
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def build_all(jobs: list[tuple[Variant, int]]) -> list[Report]:
    """Reports in the order of the jobs, built on this process's share of the processors under pytest-xdist."""
    count = (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    return list(workers(count).map(build, *zip(*jobs)) if count > 1 else map(build, *zip(*jobs)))
