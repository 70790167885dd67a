"""The numbers of an audit, its keys, and the answers to bad input."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import atrous
from atrous.models import BasicBlock, ResNet, drn_c_26, resnet34


@pytest.mark.parametrize("rates, side, reached, largest_hole, common_factor", [
    ((2, 2, 2), 13, 49, 1, 2), ((3, 3, 3), 19, 49, 2, 3), ((2, 3), 11, 81, 1, 1), ((1, 2, 5), 17, 289, 0, 1),
    ((1, 2, 9), 25, 441, 2, 1), ((2, 4, 8), 29, 225, 1, 2), ((7,), 15, 9, 6, 7),
])  # fmt: skip
def test_known_stacks(rates, side, reached, largest_hole, common_factor):
    audit = atrous.audit_dilation(rates)
    assert audit.receptive_field == (side, side) and audit.positions == side * side
    assert (audit.reached, audit.holes) == (reached, side * side - reached)
    assert audit.coverage == reached / side**2
    assert (audit.largest_hole, audit.common_factor) == (largest_hole, common_factor)
    assert audit.center == (side // 2, side // 2)
    assert audit.profile.sum() == 9 ** len(rates)  # every path is counted
    assert (audit.suggestion is None) == (audit.holes == 0)


def test_profile_of_three_equal_rates():
    """Three layers of rate 1: the counts are the outer product of 1, 3, 6, 7, 6, 3, 1."""
    line = torch.tensor([1, 3, 6, 7, 6, 3, 1], dtype=torch.float64)
    assert torch.equal(atrous.audit_dilation([1, 1, 1]).profile, line.outer(line))
    assert torch.equal(atrous.audit_dilation([2, 2, 2]).profile[::2, ::2], line.outer(line))


def test_even_kernels_read_one_position_more_behind_the_middle():
    audit = atrous.audit_dilation([1], kernel_sizes=2)
    assert audit.receptive_field == (2, 2) and audit.center == (0, 0)
    audit = atrous.audit_dilation([2, 3], kernel_sizes=(2, 4))
    assert audit.receptive_field == (12, 12) and audit.center == (5, 5) and audit.hdc is None


def test_padding_share():
    """Rate 24 on 28x28: along an axis 4, 28 and 4 of 28 taps are inside, together 18.4 % of all."""
    audit = atrous.audit_dilation([24], input_size=28)
    assert 1 - audit.layers[0].padding_share == pytest.approx((36 / 84) ** 2)
    conv = nn.Conv2d(1, 1, 3, padding=24, dilation=24)
    assert atrous.audit_dilation(conv, 28).layers[0].padding_share == audit.layers[0].padding_share
    assert atrous.audit_dilation([24]).layers[0].padding_share is None


def test_resnet34():
    """Its receptive field is 899 pixels, and dilation in place of strides keeps it."""
    for output_stride in (8, 32):
        audit = atrous.audit_dilation(resnet34(output_stride=output_stride))
        assert audit.receptive_field == (899, 899) and audit.holes == 0 and audit.suggestion is None
    assert [layer.name for layer in audit.layers][:3] == ["conv1", "maxpool", "layer1.0.conv1"]
    assert audit.layers[0].operator == "conv2d" and audit.layers[1].operator == "max_pool2d"
    assert audit.gmac == pytest.approx(3.6636, abs=1e-3)  # without the classifier


def test_the_grid_of_dilated_residual_stages_and_what_closes_it():
    """DRN (arXiv:1705.09914): stages of rates 2 and 4 read a grid; layers of falling dilation behind them close it."""
    stages = [2] * 12 + [4] * 6
    assert atrous.audit_dilation(stages).common_factor == 2
    assert atrous.audit_dilation(stages).coverage == pytest.approx(0.25, abs=0.01)
    assert atrous.audit_dilation([*stages, 2, 2, 1, 1]).coverage == 1.0


def test_drn_c_26():
    """Published as DRN-C-26: stages of rates 2 and 4, then 2, 2, 1, 1 without residuals."""
    audit = atrous.audit_dilation(drn_c_26(), 64)
    assert audit.stack.rates[-8:] == (4, 4, 4, 4, 2, 2, 1, 1) and audit.coverage == 1.0


def test_bound_of_regseg():
    """RegSeg (arXiv:2111.09957): a rate up to the field of the layers before it leaves no holes, one more does."""
    for rates in ([1], [1, 2], [1, 2, 4]):
        side = atrous.audit_dilation(rates).receptive_field[0]
        assert atrous.audit_dilation([*rates, side]).holes == 0
        assert atrous.audit_dilation([*rates, side + 1]).holes > 0


def test_a_model_with_holes_gets_a_suggestion():
    layers = [layer for rate in (2, 2, 2) for layer in (nn.Conv2d(4, 4, 3, padding=rate, dilation=rate), nn.ReLU())]
    audit = atrous.audit_dilation(nn.Sequential(*layers), 32)
    assert (audit.reached, audit.common_factor) == (49, 2) and audit.suggestion.stack.rates == (1, 2, 3)
    assert audit.hdc is None


class Excited(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        y = self.conv(x)
        return y * torch.sigmoid(self.gate(self.pool(y)))


def test_global_branches_are_reported_apart():
    audit = atrous.audit_dilation(Excited())
    assert audit.receptive_field == (3, 3) and audit.global_branches == ["pool"]
    assert atrous.audit_dilation(resnet34()).global_branches == []  # the pooling comes after the last map


def test_several_outputs():
    """The field is that of the output with the largest one."""
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), features_only=True)
    whole = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3)
    assert atrous.audit_dilation(backbone).receptive_field == atrous.audit_dilation(whole).receptive_field


def test_the_model_is_not_changed():
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3)
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    atrous.audit_dilation(model, 64)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_channels_and_sizes():
    gray = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    assert atrous.audit_dilation(gray).input_size == (224, 224)
    assert atrous.audit_dilation(gray, (40, 50)).input_size == (40, 50)
    shuffled = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3))
    assert atrous.audit_dilation(shuffled, (3, 32, 32)).receptive_field == (6, 6)


@pytest.mark.parametrize("layer, size, expected", [
    (nn.Conv2d(4, 6, (3, 5), 2, (1, 2)), (16, 20), 4 * 6 * 15 * 8 * 10), (nn.Conv2d(4, 8, 3, groups=4), 10, 8 * 9 * 64),
    (nn.ConvTranspose2d(4, 6, 3, 2, 1), 10, 4 * 6 * 9 * 100), (nn.ConvTranspose2d(4, 6, 2, 3), (5, 7), 4 * 6 * 4 * 35),
    (nn.Sequential(nn.Conv2d(4, 4, 1), nn.AvgPool2d(3), nn.ReLU()), 9, 16 * 81),
], ids=["strided", "grouped", "transposed", "transposed with gaps", "pooled"])  # fmt: skip
def test_multiply_adds(layer, size, expected):
    """A convolution's for each output position, a transposed one's for each input position; a pooling has none."""
    audit = atrous.audit_dilation(layer, size)
    assert round(audit.gmac * 1e9) == expected == round(1e9 * sum(one.gmac for one in audit.layers))


def test_keys_of_the_json():
    for audited in ([2, 2, 2], Excited()):
        audit = atrous.audit_dilation(audited)
        record = json.loads(json.dumps(audit.as_dict()))
        assert list(record) == [field.name for field in dataclasses.fields(audit)]
        assert record["profile"] == audit.profile.tolist() and record["coverage"] == audit.coverage


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        y = self.conv(x)
        return y if y.sum() > 0 else -y


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        tokens = y.flatten(2)
        return (tokens @ (tokens.transpose(1, 2) @ tokens)).view_as(y)


class Rolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.second(self.conv(x).roll(1, 2))


@pytest.mark.parametrize("arguments, error, message", [
    (([],), ValueError, r"model_or_rates: expected a torch.nn.Module or positive integers, got \[\]"),
    (([1, 0],), ValueError, r"model_or_rates: .* got \[1, 0\]"),
    (([1, 2.0],), ValueError, r"model_or_rates: .* got \[1, 2.0\]"),
    (([True],), ValueError, r"model_or_rates: .* got \[True\]"),
    (("1,2",), TypeError, r"model_or_rates: .* got '1,2'"),
    ((3,), TypeError, r"model_or_rates: .* got 3"),
    (([5000],), ValueError, r"model_or_rates: expected a field of at most 8192 pixels, got 10001"),
    (([1, 2], None, [3]), ValueError, r"kernel_sizes: expected one, or one for each of 2 rates, got 1"),
    (([1, 2], None, 0), ValueError, r"kernel_sizes: expected positive integers, got \[0, 0\]"),
    (([1, 2], 0), ValueError, r"input_size: expected positive integers, got \(0, 0\)"),
    (([1, 2], (3, 3, 3, 3)), ValueError, r"input_size: expected a number, \(H, W\) or \(C, H, W\), got"),
    ((nn.Conv2d(1, 1, 3, padding=60000, dilation=60000), 64), ValueError, r"a field of at most 8192 pixels, got 12"),
    ((nn.LazyConv2d(3, 3),), ValueError, r"model: expected initialized parameters, got lazy ones: call the model once"),
    ((nn.Linear(2, 2),), ValueError, r"model: expected a model with convolutions, got Linear without one"),
    ((nn.Conv2d(3, 4, 9), 8), ValueError, r"input_size: expected an image .*, got \(1, 3, 8, 8\): RuntimeError: Calc"),
    ((Decides(), 8), ValueError, r"model: expected .* that torch.export can follow, not decided by values, got "),
    ((Attends(), 8), ValueError, r"model: expected operators that keep the height and width .* apart, got aten.matmul"),
    ((Rolled(), 8), ValueError, r"model: expected operators that keep .* apart, got aten.roll.default in the model"),
])  # fmt: skip
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        atrous.audit_dilation(*arguments)
