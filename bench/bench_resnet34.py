"""Benchmark inference of ResNet34, dilated or not, beside torch.compile, OpenVINO and ONNX Runtime."""

import pytest

from bench.subjects import networks

ACTS = {"prelu": "PReLU", "relu": "ReLU"}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("batch", [1, 8])
def test_resnet34(act, batch, full, compare):
    modes = networks.MODES if full else networks.MODES[: 2 if (act, batch) == ("prelu", 1) else 1]
    compare("ResNet34", f"{ACTS[act]} b{batch}", networks.resnet34(batch, act=act, modes=modes), seconds=8.0)


def test_dilated(full, compare):
    """Output stride 8 at 512x512."""
    modes = networks.MODES[: 3 if full else 1]
    compare("ResNet34", "512 os8 b1", networks.resnet34(1, 512, output_stride=8, modes=modes), seconds=20.0)
