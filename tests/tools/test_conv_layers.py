"""The convolutions of a fused model: their order, geometry, residuals and memory traffic."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import atrous
from atrous.core.spec import Spec
from atrous.models import BasicBlock, ResNet, resnet34
from atrous.tools.explain.conv_layers import ConvLayer, conv_layers

SMALL = (1, 3, 64, 64)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return resnet34()


@pytest.fixture(scope="module")
def layers(model):
    return conv_layers(model, (1, 3, 224, 224))


def blocks(channels, count):
    """Names, strides and residuals of a stage, as torchvision's blocks run: the shortcut before the block's sum."""
    for block in range(count):
        first = block == 0 and channels > 64
        if first:
            yield "0.downsample.0", 2, "none"
        yield f"{block}.conv1", 2 if first else 1, "none"
        yield f"{block}.conv2", 1, "before"


def test_resnet34_in_order(layers):
    expected = [("conv1", 2, "none")]
    for stage, (channels, count) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        expected += [(f"layer{stage}.{name}", *more) for name, *more in blocks(channels, count)]
    assert [(layer.name, layer.spec.stride[0], layer.residual) for layer in layers] == expected
    assert sum(layer.macs for layer in layers) == 3_663_249_408
    assert layers[0] == ConvLayer("conv1", (1, 3, 224, 224), (64, 3, 7, 7), Spec((2, 2), (3, 3)))
    assert layers[-1].output == (1, 512, 7, 7) and layers[0].output == (1, 64, 112, 112)


# FLOP per byte in 16 bits at batch 1, 32 and 256, computed by hand from the layers' sizes.
INTENSITY = {
    "conv1": (122.6, 123.8, 123.8),
    "layer1.0.conv1": (263.8, 287.2, 287.9),
    "layer1.0.conv2": (180.9, 191.6, 192.0),
    "layer2.0.conv1": (154.2, 190.5, 191.8),
    "layer2.0.downsample.0": (20.8, 21.3, 21.3),
    "layer4.0.conv1": (46.1, 515.5, 723.7),
    "layer4.2.conv2": (47.5, 775.9, 1368.4),
}


@pytest.mark.parametrize("name", INTENSITY)
def test_bytes(layers, name):
    (layer,) = [layer for layer in layers if layer.name == name]
    for batch, intensity in zip((1, 32, 256), INTENSITY[name]):
        larger = replace(layer, input=(batch, *layer.input[1:]))
        assert 2 * larger.macs / larger.bytes(2) == pytest.approx(intensity, abs=0.051)
        assert larger.bytes(4) == 2 * larger.bytes(2)


@pytest.mark.gate
def test_dilated(model):
    layers = {layer.name: layer for layer in conv_layers(resnet34(output_stride=8), (2, 3, 96, 64))}
    assert layers["layer4.2.conv2"].spec == Spec((1, 1), (4, 4), (4, 4))
    assert layers["layer4.2.conv2"].output == (2, 512, 12, 8)
    assert layers["layer4.0.conv1"].spec.dilation == (2, 2)


@pytest.mark.gate
@pytest.mark.parametrize("change", [
    lambda model: atrous.fuse(model),
    lambda model: atrous.fuse(model, backend="library"),
    lambda model: atrous.fuse(model, freeze=True),
    lambda model: atrous.fuse(model, backend="library", freeze=True),
    lambda model: model.to(torch.bfloat16),
    lambda model: model.half().train(),
], ids=["fused", "fused for a backend", "frozen", "frozen for a backend", "bfloat16", "half"])  # fmt: skip
def test_the_same_whatever_was_done_to_the_model(change):
    model = ResNet(BasicBlock, (1, 1, 1, 1), act="prelu", output_stride=16)
    expected = conv_layers(model, SMALL)
    assert [layer.residual for layer in expected].count("before") == 4
    assert conv_layers(change(model), SMALL) == expected


class Net(nn.Module):
    """A sum after the activation, a convolution that runs twice, sums without a convolution, and other convolutions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, (3, 5), padding="same", dilation=(2, 1), groups=4)
        self.twice = nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.line = nn.Conv1d(8, 8, 3)
        self.kernel = nn.Parameter(torch.zeros(4, 8, 1, 1))

    def forward(self, x):
        y = self.act(self.conv(x)) + x
        z = self.twice(y)
        z = self.act(z) + z
        z = self.twice(z)
        z = self.act(self.pool(z) + z)
        z = self.line(self.up(z).flatten(2)).unsqueeze(2)
        return nn.functional.conv2d(z, self.kernel, stride=(1, 2))


def test_every_kind_of_convolution():
    layers = conv_layers(Net(), (2, 8, 6, 7))
    assert layers == [
        ConvLayer("conv", (2, 8, 6, 7), (8, 2, 3, 5), Spec((1, 1), (2, 2), (2, 1), 4), "after"),
        ConvLayer("twice", (2, 8, 6, 7), (8, 8, 1, 1), Spec()),
        ConvLayer("twice", (2, 8, 6, 7), (8, 8, 1, 1), Spec()),
        ConvLayer("kernel", (2, 8, 1, 54), (4, 8, 1, 1), Spec((1, 2))),
    ]
    assert layers[0].macs == 2 * 8 * 42 * 2 * 15
    assert layers[0].bytes(2) == 2 * (2 * 8 * 42 + 8 * 2 * 15 + 2 * 2 * 8 * 42)
    assert layers[3].bytes(4) == 4 * (2 * 8 * 54 + 4 * 8 + 2 * 4 * 27)


class Real(nn.Module):
    """A model that reads its values cannot run on shapes alone: it runs on zeros, in its dtype."""

    def __init__(self):
        super().__init__()
        self.body = ResNet(BasicBlock, (1, 1, 1, 1))

    def forward(self, x):
        return self.body(x) if float(x.sum()) == 0 else x


@pytest.mark.gate
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("freeze", [False, True])
def test_a_model_that_needs_numbers(dtype, freeze):
    model = Real().to(dtype)
    expected = [replace(layer, name=f"body.{layer.name}") for layer in conv_layers(model.body, SMALL)]
    assert len(expected) == 12
    assert conv_layers(atrous.fuse(model, freeze=True) if freeze else model, SMALL) == expected


def test_no_arithmetic(model, monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("the model would run on numbers")

    monkeypatch.setattr(torch, "zeros", refuse)
    assert conv_layers(model, (10**6, 3, 64, 64))[0].input[0] == 10**6


def test_the_model_stays_as_it_was(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    conv_layers(model, SMALL)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert "forward" not in vars(model)


def test_errors_are_the_models_own(model):
    with pytest.raises(RuntimeError, match="3 channels"):
        conv_layers(model, (1, 1, 64, 64))
