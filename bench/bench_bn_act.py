"""Benchmark bn_act with a residual at the sizes of ResNet34's first and last stage."""

import pytest

from bench.subjects import ops, subject


@pytest.mark.parametrize("case", ops.STAGES, ids=lambda case: case.name)
def test_bn_act(case, compare):
    compare("bn_act", case.name, [ops.bn_act(case, dtype) for dtype in subject.dtypes()], seconds=3.0)
