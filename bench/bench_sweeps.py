"""For `make bench-full`: activations, and how the time grows with batch, size, channels and dilation."""

import dataclasses

import pytest

from atrous import testing
from bench.subjects import networks, ops, subject

STAGE = next(case for case in testing.RESNET34 if case.name == "layer3_dilated")  # 256 channels, 28x28, dilation 2


@pytest.mark.parametrize("act", ["relu", "leaky_relu", "prelu", "rrelu"])
def test_activations(act, compare):
    compare("ResNet34, activations", act, networks.resnet34(1, act=act), seconds=8.0)


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
def test_batches(batch, compare):
    compare("ResNet34, batch", f"b{batch}", networks.resnet34(batch), seconds=12.0, axis="batch", x=batch)


@pytest.mark.parametrize("size", [96, 160, 224, 320, 448])
def test_sizes(size, compare):
    compare("ResNet34, size", str(size), networks.resnet34(1, size), seconds=12.0, axis="size", x=size)


@pytest.mark.parametrize("channels", [32, 64, 128, 256, 512])
def test_channels(channels, compare):
    case = dataclasses.replace(STAGE, size=(1, channels, 28, 28), out_channels=channels, padding=1, dilation=1)
    subjects = [ops.conv_bn_act(case, dtype) for dtype in subject.dtypes()]
    compare("conv_bn_act, channels", str(channels), subjects, seconds=2.0, axis="channels", x=channels)


@pytest.mark.parametrize("dilation", [1, 2, 4, 8])
def test_dilations(dilation, compare):
    case = dataclasses.replace(STAGE, padding=dilation, dilation=dilation)
    subjects = [ops.conv_bn_act(case, dtype) for dtype in subject.dtypes()]
    compare("conv_bn_act, dilation", f"d={dilation}", subjects, seconds=2.0, axis="dilation", x=dilation)
