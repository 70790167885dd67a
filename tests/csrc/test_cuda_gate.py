"""The pointwise kernels of csrc/cuda, compiled for sm_80, sm_90a and sm_100 without a card; see cuda_gate.py."""

from __future__ import annotations

import cuda_gate as gate
import pytest

pytestmark = pytest.mark.gate

CHIPS = (80, "90a", 100)
# Four dtypes; of the epilogue four kinds and three places of a residual, two in its gradient.
KERNELS = {"epilogue_kernel": 48, "backward_kernel": 32, "reduce_kernel": 32, "statistics_kernel": 4}
FINISHING = 2 * 2  # of two reductions, fp32 and fp64
SOURCES = [f"csrc/cuda/{name}.cu" for name in ("epilogue", "backward", "reduce", "statistics")]
# What their launch bounds leave: four blocks of 256 threads on a multiprocessor's 65536 registers, two, or one.
MOST_REGISTERS = {"epilogue_kernel": 128, "backward_kernel": 128, "reduce_kernel": 128, "statistics_kernel": 80}


def most_registers(kernel: gate.Kernel) -> int:
    """Those of its name; the reductions that draw have one block."""
    name, _, arguments = kernel.name.partition("<")
    return 255 if name == "reduce_kernel" and arguments.endswith("true>") else MOST_REGISTERS.get(name, 255)


@pytest.mark.parametrize("chip", CHIPS)
def test_resources(chip):
    """Every kernel is there and spills nothing; what is aligned is read and written in 16 bytes."""
    if reason := gate.missing():
        pytest.skip(reason)
    kernels = gate.compile(SOURCES, chip)
    names = [kernel.name.partition("<")[0] for kernel in kernels]
    assert {name: names.count(name) for name in KERNELS} == KERNELS
    assert names.count("finish_kernel") == len(names) - sum(KERNELS.values())
    wrong = []
    for name, kernel in zip(names, kernels):
        label, most = f"{kernel.name} sm_{chip}", most_registers(kernel)
        if kernel.stack or kernel.spills:
            wrong.append(f"{label}: expected no stack, got {kernel.stack} bytes, {kernel.spills} of them spilled")
        if kernel.registers > most:
            wrong.append(f"{label}: expected at most {most} registers, got {kernel.registers}")
        if name in KERNELS and not kernel.opcodes["LDG.128"]:
            wrong.append(f"{label}: expected loads of 16 bytes")
        if name in ("epilogue_kernel", "backward_kernel") and not kernel.opcodes["STG.128"]:
            wrong.append(f"{label}: expected stores of 16 bytes")
    assert wrong == []
