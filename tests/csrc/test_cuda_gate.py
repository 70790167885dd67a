"""Checks csrc/cuda's pointwise kernels as compiled for sm_80, sm_90a and sm_100, without a GPU; see cuda_gate.py."""

from __future__ import annotations

import cuda_gate as gate
import pytest

pytestmark = pytest.mark.gate

CHIPS = (80, "90a", 100)
# Variants: four dtypes, four kinds of slope and dropout, and three places of a residual (two in its gradient).
KERNELS = {"epilogue_kernel": 48, "backward_kernel": 32, "reduce_kernel": 32, "statistics_kernel": 4}
# The registers that the launch bounds allow: three, two or one blocks of 256 threads share 65536 registers.
MAX_REGISTERS = {"epilogue_kernel": 128, "backward_kernel": 128, "reduce_kernel": 128, "statistics_kernel": 80}


def max_registers(kernel: gate.Kernel) -> int:
    """The limit of this kernel; reductions that draw have one block per multiprocessor."""
    name, _, arguments = kernel.name.partition("<")
    return 255 if name == "reduce_kernel" and arguments.endswith("true>") else MAX_REGISTERS.get(name, 255)


@pytest.mark.drawn(3)
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kernel_name", KERNELS)
def test_resources(chip, kernel_name):
    """Every kernel of a source exists and spills nothing; aligned tensors are read and written in 16-byte accesses."""
    if reason := gate.missing():
        pytest.skip(reason)
    kernels = gate.compile([f"csrc/cuda/{kernel_name.removesuffix('_kernel')}.cu"], chip)
    names = [kernel.name.partition("<")[0] for kernel in kernels]
    assert names.count(kernel_name) == KERNELS[kernel_name]
    assert names.count("finish_kernel") == len(names) - KERNELS[kernel_name]
    wrong = []
    for name, kernel in zip(names, kernels):
        label, limit = f"{kernel.name} sm_{chip}", max_registers(kernel)
        if kernel.stack or kernel.spills:
            wrong.append(f"{label}: expected no stack, got {kernel.stack} bytes, {kernel.spills} of them spilled")
        if kernel.registers > limit:
            wrong.append(f"{label}: expected at most {limit} registers, got {kernel.registers}")
        if name in KERNELS and not kernel.opcodes["LDG.128"]:
            wrong.append(f"{label}: expected loads of 16 bytes")
        if name in ("epilogue_kernel", "backward_kernel") and not kernel.opcodes["STG.128"]:
            wrong.append(f"{label}: expected stores of 16 bytes")
    assert wrong == []
