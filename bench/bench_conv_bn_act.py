"""Benchmark conv_bn_act on the layers of ResNet34 and of its dilated form."""

import pytest
import torch

from atrous import testing
from bench import providers

DTYPES = [torch.float32, torch.bfloat16][: 1 + torch.cuda.is_available()]  # many CPUs emulate bf16


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("provider", providers.OPS)
@pytest.mark.parametrize("case", testing.RESNET34, ids=lambda case: case.name)
def test_conv_bn_act(case, provider, dtype, compare):
    compare(f"conv_bn_act {case.name} {dtype}", provider, providers.conv_bn_act(case, dtype))
