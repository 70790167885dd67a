"""The innermost loops of Winograd's GEMMs keep their sums in registers.

GCC once moved the sums of AVX2's through memory in each step: the result was right, and a network ran at 0.7 of eager's
speed on a processor that no machine of CI had.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import atrous

LIBRARY = Path(atrous.__file__).parent / "libatrous.so"
pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason="libatrous.so is not built here"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed"),
]

INSTRUCTION = re.compile(r"^ +([0-9a-f]+):\t(\S+) *([^<#\n]*)", re.MULTILINE)
JUMPS = "jne", "jl", "jg", "jb"
KERNELS = re.compile(r"winograd::\(anonymous namespace\)::(multiply_wide|multiply_narrow.*v3|Int16::multiply)")


def functions() -> dict[str, list[tuple[int, str, str]]]:
    """name -> (address, mnemonic, operands) of the instructions of each kernel."""
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-C", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    parts = re.split(r"^[0-9a-f]+ <(.*)>:$", text, flags=re.MULTILINE)
    return {
        name: [(int(address, 16), *rest) for address, *rest in INSTRUCTION.findall(body)]
        for name, body in zip(parts[1::2], parts[2::2])
        if KERNELS.search(name)
    }


def loops(instructions: list[tuple[int, str, str]]) -> list[list[tuple[int, str, str]]]:
    """The bodies of the innermost loops that multiply."""
    jumps = [(int(operands, 16), address) for address, name, operands in instructions if name in JUMPS]
    ends = [(target, address) for target, address in jumps if target < address]
    innermost = [(a, b) for a, b in ends if not any(a <= c and d < b for c, d in ends)]
    bodies = [[one for one in instructions if start <= one[0] <= end] for start, end in innermost]
    return [body for body in bodies if any(name.startswith(("vfmadd", "vpdpwssd")) for _, name, _ in body)]


def test_sums_stay_in_registers():
    kernels = functions()
    if not kernels:
        pytest.skip("this compiler builds one version for all processors")
    bodies = [body for instructions in kernels.values() for body in loops(instructions)]
    assert len(bodies) >= 2 * 14 + 6, "a kernel of each number of tiles"
    for body in bodies:
        on_stack = [one for one in body if re.search(r"\(%r[sb]p", one[2]) and re.search(r"%[yz]mm", one[2])]
        assert not on_stack, on_stack
