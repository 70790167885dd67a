"""Benchmark add_act at the sizes of ResNet34's stages."""

import pytest
import torch

from atrous import testing
from bench import providers

CASES = [case for case in testing.RESNET34 if case.name in ("layer1", "layer4")]


@pytest.mark.parametrize("provider", providers.OPS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_add_act(case, provider, compare):
    compare(f"add_act {case.name}", provider, providers.add_act(case, torch.float32))
