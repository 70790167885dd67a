"""The CUDA convolution, compiled for sm_80, sm_90 and sm_100 without a card; see cuda_gate.py."""

from __future__ import annotations

import cuda_gate as gate
import pytest

pytestmark = pytest.mark.gate

CHIPS = (80, 90, 100)
PRODUCTS = {"csrc/cuda/conv_fp16.cu": 27, "csrc/cuda/conv_bf16.cu": 27, "csrc/cuda/conv_fp32.cu": 14}
REDUCE = {"csrc/cuda/conv_reduce.cu": 18}
HOST = ["csrc/cuda/conv.cpp", "csrc/cuda/conv_plan.cpp", "csrc/cuda/device.cpp", "csrc/cuda/ops.cpp"]
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


@pytest.mark.parametrize("chip", CHIPS)
def test_reduction(chip):
    kernels = gate.compile(list(REDUCE), chip)
    assert len(kernels) == REDUCE["csrc/cuda/conv_reduce.cu"]
    assert complaints(kernels, lambda kernel: 128) == []


def test_host_code():
    """What has no kernel compiles with the stable ABI's headers alone."""
    assert gate.compile(HOST, 80) == []


def test_every_load_and_the_epilogue_on_the_host(tmp_path):
    """conv_walk.cu: what the kernels load and end in, against fp64; what the host plans and refuses."""
    program = tmp_path / "walk"
    sources = [gate.ROOT / "tests/conv_walk.cu", gate.ROOT / "csrc/cuda/conv_plan.cpp"]
    include = f"-I{gate.ROOT / 'csrc/cuda'}"
    gate.run(gate.nvcc(), *gate.setup().nvcc_flags(), *gate.includes(), include, "-arch=sm_80", "-o", program, *sources)
    said = gate.run(program).stdout
    assert "ok" in said and "WRONG" not in said and "refused" not in said, said
