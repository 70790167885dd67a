"""gpus.def: Python and C++ read the same constants, and its shared memory agrees with the compile gate's."""

import re
import subprocess
from pathlib import Path

import pytest

from atrous.triton_kernels.gpus import GPUS, Gpu, gpu

TABLE = Path(__file__).parents[2] / "triton_kernels" / "gpus.def"


def test_python_reads_what_a_compiler_reads(tmp_path):
    source = tmp_path / "table.c"
    numbers = "".join(f"%{'d' if name in ('chip', 'shared') else 'g'} " for name in Gpu._fields)
    source.write_text(
        f"#include <stdio.h>\n#define GPU(c, m, a, l, d, s) "
        f'printf("{numbers}\\n", c, (double)(m), (double)(a), (double)(l), (double)(d), s);\n'
        f'int main(void) {{\n#include "{TABLE}"\n}}\n'
    )
    subprocess.run(["cc", source, "-o", tmp_path / "table"], check=True)
    printed = subprocess.run(tmp_path / "table", check=True, capture_output=True, text=True).stdout
    assert [Gpu(*map(float, line.split())) for line in printed.splitlines()] == list(GPUS.values())
    assert len(GPUS) == len(re.findall("^GPU", TABLE.read_text(), re.MULTILINE)) >= 8


@pytest.mark.parametrize("chip, expected", [(75, 80), (80, 80), (88, 87), (90, 90), (101, 100), (121, 120)])
def test_a_chip_that_is_not_listed_takes_the_newest_that_is_not_newer(chip, expected):
    assert gpu(chip).chip == expected


def test_the_compile_gate_has_the_same_shared_memory():
    gate = pytest.importorskip("compile_gate", reason="needs triton", exc_type=ImportError)
    assert {chip: gpu(chip).shared << 10 for chip in gate.SHARED_MEMORY} == gate.SHARED_MEMORY


def test_asynchronous_mma_is_not_slower():
    assert all(known.asynchronous >= known.mma > 0 and known.l2 > known.memory > 0 for known in GPUS.values())
