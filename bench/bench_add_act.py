"""Benchmark add_act at the sizes of ResNet34's first and last stage."""

import pytest

from bench.subjects import ops, subject


@pytest.mark.parametrize("case", ops.STAGES, ids=lambda case: case.name)
def test_add_act(case, compare):
    compare("add_act", case.name, [ops.add_act(case, dtype) for dtype in subject.dtypes()], seconds=3.0)
