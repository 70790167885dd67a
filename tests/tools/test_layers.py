"""The layer summary: the sizes and totals of a model's layers, and the table that shows them."""

import pytest
import torch
from torch import nn

import atrous
from atrous.fusion import fuse
from atrous.models import BasicBlock, ResNet, resnet34
from atrous.tools.explain.layer_table import table
from atrous.tools.explain.layers import summarize

CONV3 = 115_605_504  # multiply-adds of every 3x3 convolution of stride 1 in ResNet34 at 224: 56 * 56 * 64 * 576
STAGES = {"layer1": (64, 56, 3), "layer2": (128, 28, 4), "layer3": (256, 14, 6), "layer4": (512, 7, 3)}


def expected_layers():
    """name, kernel, stride, padding, output, parameters, multiply-adds of each layer with a kernel, and of the head."""
    yield "conv1", 7, 2, 3, (1, 64, 112, 112), 9_408, 118_013_952
    yield "maxpool", 3, 2, 1, (1, 64, 56, 56), 0, 0
    inputs = 64
    for stage, (channels, size, blocks) in STAGES.items():
        output = (1, channels, size, size)
        for block in range(blocks):
            stride = 2 if block == 0 and channels > 64 else 1
            if stride == 2:
                yield f"{stage}.0.downsample.0", 1, 2, 0, output, inputs * channels, 6_422_528
            yield f"{stage}.{block}.conv1", 3, stride, 1, output, 9 * inputs * channels, CONV3 // stride
            yield f"{stage}.{block}.conv2", 3, 1, 1, output, 9 * channels**2, CONV3
            inputs = channels
    yield "avgpool", None, None, None, (1, 512, 1, 1), 0, 0
    yield "fc", None, None, None, (1, 1000), 513_000, 512_000


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return resnet34()


@pytest.fixture(scope="module")
def summary(model):
    return summarize(model)


def pair(number):
    return None if number is None else (number, number)


def test_every_layer_of_resnet34_at_224(summary):
    layers = [layer for layer in summary.layers if layer.kernel_size or layer.name in ("avgpool", "fc")]
    expected = list(expected_layers())
    assert [layer.name for layer in layers] == [name for name, *_ in expected]
    for layer, (_, kernel, stride, padding, output, parameters, macs) in zip(layers, expected):
        geometry = (layer.kernel_size, layer.stride, layer.padding)
        assert geometry == (pair(kernel), pair(stride), pair(padding)), layer.name
        assert (layer.output, layer.parameters, layer.macs) == (output, parameters, macs), layer.name
        assert layer.dilation == (None if kernel is None else (1, 1)), layer.name


def test_batch_norms_and_activations_keep_the_size(summary):
    kinds = [layer.kind for layer in summary.layers]
    assert kinds.count("BatchNorm2d") == 36 and kinds.count("ReLU") == 33 and kinds.count("Conv2d") == 36
    for layer in summary.layers:
        if layer.kind in ("BatchNorm2d", "ReLU"):
            assert layer.input == layer.output and layer.macs == 0 and layer.kernel_size is None
            assert layer.parameters == (2 * layer.output[1] if layer.kind == "BatchNorm2d" else 0)


def test_totals(summary):
    assert summary.input == (1, 3, 224, 224)
    assert summary.parameters == sum(layer.parameters for layer in summary.layers) == 21_797_672
    assert summary.convolution_macs == 3_663_249_408  # 3.663 GMAC
    assert summary.macs == 3_663_249_408 + 512_000


def test_dilated_at_512():
    summary = summarize(resnet34(output_stride=8, act="prelu"), (1, 3, 512, 512))
    assert summary.convolution_macs / 1e9 == pytest.approx(90.408, abs=5e-4)
    layers = {layer.name: layer for layer in summary.layers}
    assert layers["layer4.2.conv2"].output == (1, 512, 64, 64) and layers["layer4.2.conv2"].dilation == (4, 4)
    assert layers["layer4.0.conv1"].macs == 4_831_838_208 and layers["layer4.0.conv1"].dilation == (2, 2)
    assert layers["layer3.0.act2"].parameters == 256


def test_multiply_adds_grow_with_the_batch(model, summary):
    assert summarize(model, (8, 3, 224, 224)).macs == 8 * summary.macs


def test_the_model_stays_as_it_was(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    summarize(model, (1, 3, 64, 64))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())


class Odd(nn.Module):
    """One activation called twice, as in torchvision's ResNets, and a convolution outside of every module."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, (1, 3), padding="same", dilation=(1, 5), groups=2, dtype=torch.float64)
        self.act = nn.PReLU(4, dtype=torch.float64)
        self.unused = nn.Linear(3, 3, dtype=torch.float64)
        self.weight = nn.Parameter(torch.ones(5, 4, 1, 1, dtype=torch.float64))

    def forward(self, x):
        x = self.act(self.act(self.conv(x)))
        if float(x.sum()) > 1e9:  # meta tensors hold no numbers: this model cannot run on them
            raise AssertionError
        return {"out": nn.functional.conv2d(x, self.weight)}


def test_any_module():
    summary = summarize(Odd(), (2, 4, 6, 7))
    assert [(layer.name, layer.kind, layer.parameters, layer.macs) for layer in summary.layers] == [
        ("conv", "Conv2d", 28, 2 * 4 * 42 * 2 * 3), ("act", "PReLU", 4, 0), ("act", "PReLU", 0, 0),
    ]  # fmt: skip
    conv = summary.layers[0]
    assert (conv.kernel_size, conv.padding, conv.dilation) == ((1, 3), "same", (1, 5))
    assert summary.parameters == 28 + 4 + 12 + 20 and summary.macs == 2016 + 2 * 5 * 42 * 4
    assert "outside of the modules above: 32 parameters, <.001 GMAC" in table(summary, 80)


@pytest.mark.parametrize("backend", ["auto", "library"])
@pytest.mark.parametrize("freeze", [False, True])
def test_fused_models_do_the_same_work(backend, freeze):
    model = ResNet(BasicBlock, (1, 1, 1, 1), act="prelu", output_stride=8).eval()
    plain = summarize(model, (1, 3, 64, 64))
    fused = summarize(fuse(model, backend=backend, freeze=freeze), (1, 3, 64, 64))
    assert (fused.macs, fused.convolution_macs) == (plain.macs, plain.convolution_macs)
    assert [layer.output for layer in fused.layers] == [layer.output for layer in plain.layers]


def test_a_fused_module_is_one_layer():
    fused = atrous.nn.ConvBNAct2d(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.PReLU(16)).eval()
    (layer,) = summarize(fused, (2, 3, 10, 10)).layers
    assert (layer.kind, layer.output, layer.parameters) == ("ConvBNAct2d", (2, 16, 8, 8), 432 + 32 + 16)
    assert layer.macs == 2 * 16 * 64 * 27


def test_errors_are_the_models_own(model):
    with pytest.raises(RuntimeError, match="3 channels"):
        summarize(model, (1, 1, 64, 64))


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_table_fits_and_says_it_all(summary, width):
    text = table(summary, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    headings = [line.split() for line in lines if "blocks" in line]
    assert [" ".join(words[:4]) for words in headings] == [
        "layer1: 3 blocks 56x56x64", "layer2: 4 blocks 28x28x128", "layer3: 6 blocks 14x14x256",
        "layer4: 3 blocks 7x7x512",
    ]  # fmt: skip
    assert [words[4] for words in headings] == ["221,952", "1,116,416", "6,822,400", "13,114,368"]
    words = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert "112x112x64" in words["conv1"] and "9,536" in words["conv1"] and "0.118" in words["conv1"]
    assert "56x56x64" in words["maxpool"] and "1x1x512" in words["avgpool"]
    assert "1000" in words["fc"] and "513,000" in words["fc"]
    assert "21,797,672 parameters" in lines
    assert "3.664 GMAC, 3.663 of it in convolutions" in lines
    assert ("conv bn relu" in text) == ("no room for: modules" not in lines) == (width >= 80)
    assert not {"backend", "config", "MB", "bound", "attained"} & set(lines[0].split())  # explain.py fills them in


def test_notes_are_wrapped(summary):
    lines = table(summary, 60, ["word " * 20]).splitlines()
    assert max(map(len, lines)) <= 60 and sum(line.count("word") for line in lines) == 20
    assert lines.index("3.664 GMAC, 3.663 of it in convolutions") + 1 == lines.index(("word " * 12).rstrip())


def test_long_names_are_cut_in_the_middle():
    model = nn.Sequential()
    model.add_module("a_name_that_is_very_long_and_does_not_fit_into_the_table", nn.Conv2d(3, 8, 3))
    lines = table(summarize(model, (1, 3, 32, 32)), 60).splitlines()
    assert max(map(len, lines)) <= 60 and any(".." in line for line in lines)
    assert "30x30x8" in table(summarize(nn.Conv2d(3, 8, 3), (1, 3, 32, 32)), 60)  # a model that is one layer
