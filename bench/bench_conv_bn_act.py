"""Benchmark conv_bn_act on the layers of ResNet34 and of its dilated form."""

import pytest

from atrous import testing
from bench.subjects import ops, subject


@pytest.mark.parametrize("case", testing.RESNET34, ids=lambda case: case.name)
def test_conv_bn_act(case, compare):
    name = case.name.replace("_dilated", f" d={case.dilation}")
    compare("conv_bn_act", name, [ops.conv_bn_act(case, dtype) for dtype in subject.dtypes()], seconds=3.0)
