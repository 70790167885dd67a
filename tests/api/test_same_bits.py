"""The same bits for any number of threads and in every process, wherever torch's own convolution has them.

A primitive of csrc/cpu adds in an order that depends on shapes alone, and so does a Winograd convolution. What a layer
computes besides is torch's: a convolution of oneDNN, whose order may depend on the number of threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from digests import digests
from thread_cases import DTYPES, KINDS, NATIVE, calls
from threads import numbers_of_threads

pytestmark = pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="a GPU has no such number")

SCRIPT = Path(__file__).parents[1] / "support" / "processes" / "digests.py"
NUMBERS = (1, 2, 4)
ONE_NUMBER = "weight_gradients"  # oneDNN's
SAME = [kind for kind in KINDS if kind != ONE_NUMBER]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", SAME)
def test_the_number_of_threads_may_change_between_calls(kind, dtype):
    """One object is called with each number, and again with the first."""
    listed = calls(kind, dtype)
    results = [[call() for call in listed] for _ in numbers_of_threads(*NUMBERS, NUMBERS[0])]
    for number, others in zip((*NUMBERS[1:], NUMBERS[0]), results[1:]):
        for i, (actual, expected) in enumerate(zip(others, results[0])):
            assert all(map(torch.equal, actual, expected)), (number, i)


@pytest.fixture(scope="module")
def here():
    """The digests of this process, with two threads of torch's."""
    for _ in numbers_of_threads(2):
        return digests(list(KINDS))


@pytest.mark.parametrize("number", [2, *(pytest.param(number, marks=pytest.mark.gate) for number in (1, 4))])
def test_another_process_computes_the_same_bits(here, number):
    """Its first calls are these, and its hashes of strings are others."""
    kinds = list(KINDS) if number == 2 else SAME
    environment = {**os.environ, "OMP_NUM_THREADS": str(number), "PYTHONHASHSEED": str(number)}
    command = [sys.executable, SCRIPT, *kinds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {kind: here[kind] for kind in kinds}


@pytest.mark.skipif(not NATIVE, reason="libatrous.so is not built")
def test_digests_see_a_bit():
    (first,) = {digests(["functional"])["functional"]["torch.float32"][0] for _ in range(2)}
    assert len(first) == 64
