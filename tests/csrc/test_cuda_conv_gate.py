"""Checks the CUDA convolution as compiled for sm_80, sm_90a and sm_100, without a GPU; see cuda_gate.py."""

from __future__ import annotations

import re

import cuda_gate as gate
import pytest

pytestmark = pytest.mark.gate

CHIPS = (80, "90a", 100)
SM80 = {"csrc/cuda/conv/sm80_fp16.cu": 27, "csrc/cuda/conv/sm80_bf16.cu": 27, "csrc/cuda/conv/sm80_fp32.cu": 14}
SM90 = {"csrc/cuda/conv/sm90_fp16.cu": 18, "csrc/cuda/conv/sm90_bf16.cu": 18}
AUXILIARY = {"csrc/cuda/conv/split_k.cu": 18, "csrc/cuda/conv/pad.cu": 2}
HOST = ["csrc/cuda/conv/conv.cpp", "csrc/cuda/conv/heuristics.cpp", "csrc/cuda/device.cpp"]
# A multiprocessor's 65536 registers fit two blocks of 128 threads of the largest tile, three of the next, four of the
# smallest.
MAX_REGISTERS = {"128, 128": 255, "128, 64": 168, "64, 64": 128}


@pytest.fixture(autouse=True)
def compiler():
    if reason := gate.missing():
        pytest.skip(reason)


def violations(kernels, limit):
    """Kernels with a stack, spills or too many registers; limit(kernel): the registers that its launch bounds allow."""
    wrong = []
    for kernel in kernels:
        label = f"{kernel.name} sm_{kernel.arch}"
        if kernel.stack or kernel.spills:
            wrong.append(f"{label}: expected no stack, got {kernel.stack} bytes, {kernel.spills} of them spilled")
        if kernel.registers > limit(kernel):
            wrong.append(f"{label}: expected at most {limit(kernel)} registers, got {kernel.registers}")
    return wrong


def tile_registers(kernel):
    return next(limit for tile, limit in MAX_REGISTERS.items() if f", {tile}, " in kernel.name)


@pytest.mark.drawn(3)
@pytest.mark.parametrize("source", SM80)
@pytest.mark.parametrize("chip", CHIPS)
def test_sm80_kernels(chip, source):
    """Every kernel exists, uses tensor cores and asynchronous copies, and spills nothing."""
    kernels = gate.compile([source], chip)
    assert len(kernels) == SM80[source]
    assert violations(kernels, tile_registers) == []
    for kernel in kernels:
        assert kernel.opcodes["HMMA"] and kernel.opcodes["LDGSTS"], (kernel.name, chip)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("source", SM90)
def test_sm90_kernels(source):
    """TMA gathers x and copies the rest, wgmma is not serialized, nothing spills; two blocks of the narrow tile fit."""
    kernels = gate.compile([source], "90a")
    assert len(kernels) == SM90[source]
    assert violations(kernels, lambda kernel: 128 if ", 64, " in kernel.name else 255) == []
    for kernel in kernels:
        opcodes = kernel.opcodes
        assert opcodes["HGMMA"] and opcodes["UTMALDG.IM2COL"] and opcodes["UTMALDG"] > opcodes["UTMALDG.IM2COL"], (
            kernel.name
        )
        assert opcodes["UTMASTG"] and not kernel.serial and not opcodes["HMMA"] and not opcodes["LDGSTS"], kernel.name
        assert kernel.shared == 0, "swizzled buffers must begin at the start of shared memory"
        # The persistent kernel's consumer warp groups get registers of the loading one; clusters share the weight.
        wide = ", 256, 128, " in kernel.name
        assert kernel.threads == (384 if wide else 256), kernel.name
        assert opcodes["USETMAXREG"] == 2 * wide and bool(opcodes["UTMALDG.MULTICAST"]) == wide, kernel.name


def test_sm90_kernels_without_sm_90a():
    """Without sm_90a the kernels are empty, and their bounds, by which the library detects that, prevent a launch."""
    (source, count), *_ = SM90.items()
    kernels = gate.compile([source], 90)
    assert len(kernels) == count and not any(kernel.opcodes["HMMA"] + kernel.opcodes["STG"] for kernel in kernels)
    assert {kernel.threads for kernel in kernels} == {32}


def test_no_driver_is_linked(tmp_path):
    """The library loads without a driver: the function that encodes TMA descriptors is looked up at run time."""
    target = tmp_path / "sm90.o"
    gate.run(gate.nvcc(), *gate.setup().nvcc_flags(), *gate.includes(), "-arch=sm_80", "-c", "-o", target,
             gate.ROOT / next(iter(SM90)))  # fmt: skip
    names = gate.run("nm", "--undefined-only", target).stdout.split()
    assert "cudaLaunchKernelExC" in names and [name for name in names if re.match(r"cu[A-Z]", name)] == []


@pytest.mark.parametrize("chip", CHIPS)
def test_auxiliary_kernels(chip):
    kernels = gate.compile(list(AUXILIARY), chip)
    assert {source: sum(kernel.source == source for kernel in kernels) for source in AUXILIARY} == AUXILIARY
    assert violations(kernels, lambda kernel: 128) == []


def test_host_code():
    """Host code without kernels compiles with the stable ABI's headers alone."""
    assert gate.compile(HOST, 80) == []


# Source -> linker flags: the emulation of 9.0 replaces a function of the CUDA runtime.
EMULATIONS = {"conv_emulation.cu": [], "conv_sm90_emulation.cu": ["-Xlinker", "--allow-multiple-definition"]}


@pytest.mark.parametrize("emulation", EMULATIONS)
def test_every_load_and_the_epilogue_on_the_host(emulation, tmp_path):
    """Compares emulated loads and the epilogue with fp64, and checks what the host plans and refuses."""
    program = tmp_path / "emulation"
    sources = [gate.ROOT / "tests/support/host_cuda" / emulation, gate.ROOT / "csrc/cuda/conv/heuristics.cpp"]
    flags = [*gate.setup().nvcc_flags(), *gate.includes(), f"-I{gate.ROOT / 'csrc/cuda'}", *EMULATIONS[emulation]]
    gate.run(gate.nvcc(), *flags, "-arch=sm_80", "-o", program, *sources)
    output = gate.run(program).stdout
    assert "ok" in output and "WRONG" not in output and "refused" not in output, output
