"""conv_bn_act at the sites of ResNet34, and of its dilated form."""

import providers
import pytest
import torch

from atrous import testing


@pytest.mark.parametrize("provider", providers.OPS)
@pytest.mark.parametrize("case", testing.RESNET34, ids=lambda case: case.name)
def test_conv_bn_act(case, provider, compare):
    compare(f"conv_bn_act {case.name}", provider, providers.conv_bn_act(case, torch.float32))
