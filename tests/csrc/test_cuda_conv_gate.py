"""The CUDA convolution, compiled for sm_80, sm_90a and sm_100 without a card; see cuda_gate.py."""

from __future__ import annotations

import re

import cuda_gate as gate
import pytest

pytestmark = pytest.mark.gate

CHIPS = (80, "90a", 100)
PRODUCTS = {"csrc/cuda/conv/sm80_fp16.cu": 27, "csrc/cuda/conv/sm80_bf16.cu": 27, "csrc/cuda/conv/sm80_fp32.cu": 14}
SM90 = {"csrc/cuda/conv/sm90_fp16.cu": 18, "csrc/cuda/conv/sm90_bf16.cu": 18}
AROUND = {"csrc/cuda/conv/split_k.cu": 18, "csrc/cuda/conv/pad.cu": 2}
HOST = ["csrc/cuda/conv/conv.cpp", "csrc/cuda/conv/heuristics.cpp", "csrc/cuda/device.cpp", "csrc/cuda/ops.cpp"]
# A multiprocessor has 65536 registers: two blocks of 128 threads of the largest tile, three of the next, four.
MOST_REGISTERS = {"128, 128": 255, "128, 64": 168, "64, 64": 128}


@pytest.fixture(autouse=True)
def compiler():
    if reason := gate.missing():
        pytest.skip(reason)


def complaints(kernels, most):
    """What is wrong with them; most(kernel): the registers that its launch bounds leave."""
    wrong = []
    for kernel in kernels:
        label = f"{kernel.name} sm_{kernel.arch}"
        if kernel.stack or kernel.spills:
            wrong.append(f"{label}: expected no stack, got {kernel.stack} bytes, {kernel.spills} of them spilled")
        if kernel.registers > most(kernel):
            wrong.append(f"{label}: expected at most {most(kernel)} registers, got {kernel.registers}")
    return wrong


def tile_registers(kernel):
    return next(most for tile, most in MOST_REGISTERS.items() if f", {tile}, " in kernel.name)


@pytest.mark.parametrize("chip", CHIPS)
def test_products(chip):
    """Every product is there, on the tensor cores, fed by asynchronous copies, and spills nothing."""
    kernels = gate.compile(list(PRODUCTS), chip)
    assert {source: sum(kernel.source == source for kernel in kernels) for source in PRODUCTS} == PRODUCTS
    assert complaints(kernels, tile_registers) == []
    for kernel in kernels:
        assert kernel.opcodes["HMMA"] and kernel.opcodes["LDGSTS"], (kernel.name, chip)


def test_products_of_9_0():
    """TMA gathers x and copies the rest, wgmma runs unhindered, nothing spills; two blocks of the narrow tile fit."""
    kernels = gate.compile(list(SM90), "90a")
    assert {source: sum(kernel.source == source for kernel in kernels) for source in SM90} == SM90
    assert complaints(kernels, lambda kernel: 128 if ", 64, " in kernel.name else 255) == []
    for kernel in kernels:
        seen = kernel.opcodes
        assert seen["HGMMA"] and seen["UTMALDG.IM2COL"] and seen["UTMALDG"] > seen["UTMALDG.IM2COL"], kernel.name
        assert seen["UTMASTG"] and not kernel.serial and not seen["HMMA"] and not seen["LDGSTS"], kernel.name
        assert kernel.shared == 0, "what is swizzled begins at the start of shared memory"
        # The persistent kernel's two consumer warp groups take registers of the loading one; clusters share the weight.
        wide = ", 256, 128, " in kernel.name
        assert kernel.threads == (384 if wide else 256), kernel.name
        assert seen["USETMAXREG"] == 2 * wide and bool(seen["UTMALDG.MULTICAST"]) == wide, kernel.name


def test_products_of_9_0_elsewhere():
    """Without sm_90a there is nothing in them, and their bounds, by which the library tells that, forbid a launch."""
    (source, count), *_ = SM90.items()
    kernels = gate.compile([source], 90)
    assert len(kernels) == count and not any(kernel.opcodes["HMMA"] + kernel.opcodes["STG"] for kernel in kernels)
    assert {kernel.threads for kernel in kernels} == {32}


def test_no_driver_is_linked(tmp_path):
    """The library loads where there is no driver: what makes TMA's descriptors is asked for at run time."""
    target = tmp_path / "sm90.o"
    gate.run(gate.nvcc(), *gate.setup().nvcc_flags(), *gate.includes(), "-arch=sm_80", "-c", "-o", target,
             gate.ROOT / next(iter(SM90)))  # fmt: skip
    names = gate.run("nm", "--undefined-only", target).stdout.split()
    assert "cudaLaunchKernelExC" in names and [name for name in names if re.match(r"cu[A-Z]", name)] == []


@pytest.mark.parametrize("chip", CHIPS)
def test_what_is_around_the_products(chip):
    kernels = gate.compile(list(AROUND), chip)
    assert {source: sum(kernel.source == source for kernel in kernels) for source in AROUND} == AROUND
    assert complaints(kernels, lambda kernel: 128) == []


def test_host_code():
    """What has no kernel compiles with the stable ABI's headers alone."""
    assert gate.compile(HOST, 80) == []


# Source, what the linker is told: of compute capability 9.0 the walk brings a driver of its own.
WALKS = {"conv_emulation.cu": [], "conv_sm90_emulation.cu": ["-Xlinker", "--allow-multiple-definition"]}


@pytest.mark.parametrize("walk", WALKS)
def test_every_load_and_the_epilogue_on_the_host(walk, tmp_path):
    """What the kernels load and end in, against fp64; what the host plans and refuses."""
    program = tmp_path / "walk"
    sources = [gate.ROOT / "tests/support/host_cuda" / walk, gate.ROOT / "csrc/cuda/conv/heuristics.cpp"]
    flags = [*gate.setup().nvcc_flags(), *gate.includes(), f"-I{gate.ROOT / 'csrc/cuda'}", *WALKS[walk]]
    gate.run(gate.nvcc(), *flags, "-arch=sm_80", "-o", program, *sources)
    said = gate.run(program).stdout
    assert "ok" in said and "WRONG" not in said and "refused" not in said, said
