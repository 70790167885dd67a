"""Fixtures of the tests of Triton kernels."""

from __future__ import annotations

import pytest
import triton_cases as cases


@pytest.fixture
def poisoned_outputs():
    """New tensors are NaN, so that a result which a kernel does not write is found."""
    with cases.poisoned_outputs():
        yield


@pytest.fixture(params=["tf32", "ieee"])
def precision(request):
    """Torch's precision setting of fp32 convolutions."""
    with cases.precision(request.param):
        yield request.param
