"""pyops/walk.py and walk_table.py: the sizes and sums of a walk, and the table that shows them."""

import pytest
import torch
from torch import nn

import atrous
from atrous.fusion import fuse
from atrous.models import ResNet, resnet34
from atrous.tools.explain.layers import walk

CONV3 = 115_605_504  # multiply-adds of every 3x3 convolution of stride 1 in ResNet34 at 224: 56 * 56 * 64 * 576
STAGES = {"layer1": (64, 56, 3), "layer2": (128, 28, 4), "layer3": (256, 14, 6), "layer4": (512, 7, 3)}


def expected_walk():
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
def walked(model):
    return walk(model)


def pair(number):
    return None if number is None else (number, number)


def test_every_layer_of_resnet34_at_224(walked):
    shown = [row for row in walked.rows if row.kernel_size or row.name in ("avgpool", "fc")]
    rows = list(expected_walk())
    assert [row.name for row in shown] == [row[0] for row in rows]
    for row, (_, kernel, stride, padding, output, parameters, macs) in zip(shown, rows):
        assert (row.kernel_size, row.stride, row.padding) == (pair(kernel), pair(stride), pair(padding)), row.name
        assert (row.output, row.parameters, row.macs) == (output, parameters, macs), row.name
        assert row.dilation == (None if kernel is None else (1, 1)), row.name


def test_batch_norms_and_activations_keep_the_size(walked):
    kinds = [row.kind for row in walked.rows]
    assert kinds.count("BatchNorm2d") == 36 and kinds.count("ReLU") == 33 and kinds.count("Conv2d") == 36
    for row in walked.rows:
        if row.kind in ("BatchNorm2d", "ReLU"):
            assert row.input == row.output and row.macs == 0 and row.kernel_size is None
            assert row.parameters == (2 * row.output[1] if row.kind == "BatchNorm2d" else 0)


def test_totals(walked):
    assert walked.input == (1, 3, 224, 224)
    assert walked.parameters == sum(row.parameters for row in walked.rows) == 21_797_672
    assert walked.convolution_macs == 3_663_249_408  # 3.663 GMAC
    assert walked.macs == 3_663_249_408 + 512_000


def test_dilated_at_512():
    walked = walk(resnet34(output_stride=8, act="prelu"), (1, 3, 512, 512))
    assert walked.convolution_macs / 1e9 == pytest.approx(90.408, abs=5e-4)
    rows = {row.name: row for row in walked.rows}
    assert rows["layer4.2.conv2"].output == (1, 512, 64, 64) and rows["layer4.2.conv2"].dilation == (4, 4)
    assert rows["layer4.0.conv1"].macs == 4_831_838_208 and rows["layer4.0.conv1"].dilation == (2, 2)
    assert rows["layer3.0.act2"].parameters == 256


def test_multiply_adds_grow_with_the_batch(model, walked):
    assert walk(model, (8, 3, 224, 224)).macs == 8 * walked.macs


def test_the_model_stays_as_it_was(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    walk(model, (1, 3, 64, 64))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())


class Odd(nn.Module):
    """What torchvision's ResNets do (one activation called twice), and what they do not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, (1, 3), padding="same", dilation=(1, 5), groups=2, dtype=torch.float64)
        self.act = nn.PReLU(4, dtype=torch.float64)
        self.unused = nn.Linear(3, 3, dtype=torch.float64)
        self.weight = nn.Parameter(torch.ones(5, 4, 1, 1, dtype=torch.float64))

    def forward(self, x):
        x = self.act(self.act(self.conv(x)))
        if float(x.sum()) > 1e9:  # meta tensors hold no numbers: this model can only walk for real
            raise AssertionError
        return {"out": nn.functional.conv2d(x, self.weight)}


def test_any_module():
    walked = walk(Odd(), (2, 4, 6, 7))
    assert [(row.name, row.kind, row.parameters, row.macs) for row in walked.rows] == [
        ("conv", "Conv2d", 28, 2 * 4 * 42 * 2 * 3), ("act", "PReLU", 4, 0), ("act", "PReLU", 0, 0),
    ]  # fmt: skip
    conv = walked.rows[0]
    assert (conv.kernel_size, conv.padding, conv.dilation) == ((1, 3), "same", (1, 5))
    assert walked.parameters == 28 + 4 + 12 + 20 and walked.macs == 2016 + 2 * 5 * 42 * 4
    assert "outside of the modules above: 32 parameters, <.001 GMAC" in walked.render()


@pytest.mark.parametrize("backend", ["auto", "library"])
@pytest.mark.parametrize("freeze", [False, True])
def test_fused_models_do_the_same_work(backend, freeze):
    model = ResNet((1, 1, 1, 1), act="prelu", output_stride=8).eval()
    plain = walk(model, (1, 3, 64, 64))
    fused = walk(fuse(model, backend=backend, freeze=freeze), (1, 3, 64, 64))
    assert (fused.macs, fused.convolution_macs) == (plain.macs, plain.convolution_macs)
    assert [row.output for row in fused.rows] == [row.output for row in plain.rows]


def test_a_site_module_is_one_row():
    site = atrous.nn.ConvBNAct2d(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.PReLU(16)).eval()
    (row,) = walk(site, (2, 3, 10, 10)).rows
    assert (row.kind, row.output, row.parameters) == ("ConvBNAct2d", (2, 16, 8, 8), 432 + 32 + 16)
    assert row.macs == 2 * 16 * 64 * 27


def test_errors_are_the_models_own(model):
    with pytest.raises(RuntimeError, match="3 channels"):
        walk(model, (1, 1, 64, 64))


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_table_fits_and_says_it_all(walked, width):
    text = walked.render(width)
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
    assert not {"backend", "config", "MB", "floor", "share"} & set(lines[0].split())  # what explain.py fills in


def test_more_sums_are_wrapped(walked):
    lines = walked.render(60, ["word " * 20]).splitlines()
    assert max(map(len, lines)) <= 60 and sum(line.count("word") for line in lines) == 20
    assert lines.index("3.664 GMAC, 3.663 of it in convolutions") + 1 == lines.index(("word " * 12).rstrip())


def test_long_names_are_cut_in_the_middle():
    model = nn.Sequential()
    model.add_module("a_name_that_is_very_long_and_does_not_fit_into_the_table", nn.Conv2d(3, 8, 3))
    lines = walk(model, (1, 3, 32, 32)).render(60).splitlines()
    assert max(map(len, lines)) <= 60 and any(".." in line for line in lines)
    assert "30x30x8" in walk(nn.Conv2d(3, 8, 3), (1, 3, 32, 32)).render(60)  # a model that is one layer
