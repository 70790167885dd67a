"""prelu_net14: sizes, slopes and initial weights as in the PReLU paper's table 1, and the layers that fuse() finds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import atrous
from atrous.models import prelu_net14


def meta(**options):
    with torch.device("meta"):
        return prelu_net14(**options)


def test_map_sizes_of_table_1():
    model, sizes = meta(), []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            module.register_forward_hook(lambda module, arguments, y: sizes.append(tuple(y.shape[1:])))
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)
    second = [(128, 37, 37), (128, 36, 36)] * 2
    third = [(256, 19, 19), (256, 18, 18)] * 3
    assert sizes == [(64, 109, 109), (64, 36, 36), *second, (128, 18, 18), *third]


@pytest.mark.parametrize("channel_wise", [True, False])
def test_fourteen_layers_and_their_slopes(channel_wise):
    model = meta(channel_wise=channel_wise)
    weighted = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    channels = [module.weight.shape[0] for module in weighted]
    assert channels == [64] + [128] * 4 + [256] * 6 + [4096, 4096, 1000]
    assert [module.weight.shape[-1] for module in weighted[:11]] == [7] + [2] * 10
    assert weighted[11].in_features == 256 * (36 + 9 + 4 + 1)
    slopes = [module.num_parameters for module in model.modules() if isinstance(module, nn.PReLU)]
    assert slopes == (channels[:-1] if channel_wise else [1] * 13)


def test_small_images_channels_classes_and_initial_weights():
    torch.manual_seed(0)
    model = prelu_net14(num_classes=3, in_channels=1).eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            inputs = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / (1.0625 * inputs)) ** 0.5, rel=0.1), name
    with torch.no_grad():
        x = torch.randn(2, 1, 17, 40)
        assert model(x).shape == (2, 3)  # 16 would leave nothing behind the pools
        fused = atrous.fuse(model)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    patterns = [layer.pattern for layer in fused.fusion_report.sites if layer.fused]
    assert patterns.count("conv+prelu") == 11


@torch.no_grad()
def test_the_pyramid_concatenates_max_pools():
    model, seen = prelu_net14(num_classes=2, dropout=0.0), []
    model.fc1.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model.conv3.register_forward_hook(lambda module, arguments, y: seen.append(y))
    model(torch.randn(1, 3, 64, 48))
    maps, vector = seen
    expected = [F.adaptive_max_pool2d(maps, bins).flatten(1) for bins in (6, 3, 2, 1)]
    assert torch.equal(vector, torch.cat(expected, 1)) and torch.equal(vector[:, -256:], maps.amax((2, 3)))


@pytest.mark.parametrize("arguments, message", [
    ({"num_classes": 0}, "num_classes: expected a positive int, got 0"),
    ({"in_channels": 1.5}, "in_channels: expected a positive int, got 1.5"),
    ({"channel_wise": 1}, "channel_wise: expected a bool, got 1"),
    ({"dropout": 2}, "dropout: expected a number from 0 to 1, got 2"),
])  # fmt: skip
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        prelu_net14(**arguments)
