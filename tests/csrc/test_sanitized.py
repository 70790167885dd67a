"""Runs drawn calls of csrc/cpu under AddressSanitizer with UBSan and under ThreadSanitizer; each reports its faults."""

from __future__ import annotations

import os

import pytest
import sanitized

pytestmark = pytest.mark.gate

QUANTIZE, WEIGHT = "csrc/cpu/winograd/quantize.h", "csrc/cpu/winograd/weight.cpp"
# Planted faults, by sanitizer: the unit that is compiled again, the file, the right text, the wrong text, the kind of
# calls and the report.
FAULTS = {
    "address": [
        ("csrc/cpu/epilogue.cpp", "csrc/cpu/epilogue.cpp", "task.y + at, count, &", "task.y + at, count + 1, &",
         "passes", "heap-buffer-overflow"),
        (WEIGHT, QUANTIZE, "LARGEST = 8191", "LARGEST = 65535", "winograd", "signed integer overflow"),
        (WEIGHT, QUANTIZE, "value == value ? std::rint(value) : 0", "std::rint(value)", "winograd",
         "nan is outside the range of representable values"),
    ],
    "thread": [
        ("csrc/cpu/reduce.cpp", "csrc/cpu/reduce.cpp", "&sums[partition.slot(i) * 3 * channels + tile.channel]",
         "&sums[tile.channel]", "passes", "data race"),
        ("csrc/cpu/winograd/conv.cpp", "csrc/cpu/winograd/conv.cpp", "static thread_local std::vector<float> memory;",
         "static std::vector<float> memory;", "winograd", "data race"),
    ],
}  # fmt: skip
COUNT = 60  # calls of each kind


@pytest.mark.drawn(2)
@pytest.mark.parametrize("sanitizer", FAULTS)
def test_drawn_calls(sanitizer, tmp_path):
    """The sanitizer reports nothing, and with each fault it reports that."""
    seed = "--seed", os.environ.get("GATES_SEED", "0"), "--count", str(COUNT)
    clean = sanitized.run(sanitized.build(sanitizer), sanitizer, *seed)
    assert clean.returncode == 0 and "native 60; 0 failed" in clean.stdout, clean.stdout[-8000:]
    for number, (*fault, kind, report) in enumerate(FAULTS[sanitizer]):
        faulty = sanitized.planted(sanitizer, tmp_path / str(number), *fault)
        caught = sanitized.run(faulty, sanitizer, *seed, "--kind", kind)
        assert caught.returncode != 0 and report in caught.stdout, caught.stdout[-8000:]
