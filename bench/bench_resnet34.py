"""Benchmark ResNet34 with channel-wise PReLU at 224x224: plain, compiled, fused by every backend, frozen."""

import pytest
import torch

from bench import providers


@pytest.mark.parametrize("provider", providers.MODELS)
@pytest.mark.parametrize("batch", [1])
def test_resnet34(batch, provider, compare):
    compare(f"resnet34 batch {batch}", provider, providers.resnet34(batch, 224, torch.float32))
