"""heads.py and segmenter: shapes, dilations, values beside torch's functions, and the layers that fuse() finds."""

import pytest
import torch
import torch.nn.functional as F
from outcomes import randomize
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import atrous
from atrous.core.activation import ACTIVATIONS
from atrous.models import heads, resnet18, resnet50, segmenter

HEADS = {
    "aspp": (lambda act="relu": heads.ASPP(12, 8, (2, 3), act), 8, {"conv+bn+{act}": 5}),
    "hdc": (lambda act="relu": heads.HDCStage(8, 8, act=act), 8, {"conv+bn+{act}": 2, "conv+bn+add+{act}": 1}),
    "hdc, other channels": (
        lambda act="relu": heads.HDCStage(12, 8, (1, 2), act), 8,
        {"conv+bn+{act}": 1, "conv+bn+add+{act}": 1, "conv+bn": 1},
    ),
    "hdc, no residual": (
        lambda act="relu": heads.HDCStage(12, 8, act=act, residual=False), 8, {"conv+bn+{act}": 3},
    ),
    "multi rate": (lambda act="relu": heads.MultiRate(12, 8, act=act), 8, {"conv+bn+{act}": 5}),
    "three branches": (lambda act="relu": heads.MultiRate(12, 8, ((1,), (2,), (1, 3)), act), 8, {"conv+bn+{act}": 5}),
    "upsample": (lambda act="relu": heads.UpsampleHead(12, 3, 8, act), 3, {"conv+bn+{act}": 1}),
}  # fmt: skip


def layer(branch, x, act="relu"):
    """A convolution with BatchNorm and activation, by torch's functions."""
    conv, norm = branch[0], branch[1]
    z = F.conv2d(x, conv.weight, None, 1, conv.padding, conv.dilation)
    u = F.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return F.relu(u) if act == "relu" else u


def patterns(fused):
    names = [layer.pattern for layer in fused.fusion_report.sites if layer.fused]
    return {name: names.count(name) for name in names}


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_shapes_and_activations(name, act):
    make, out_channels, _ = HEADS[name]
    head = make(act).eval()
    x = torch.randn(2, head.in_channels, 9, 7)
    y = head(x)
    assert y.shape == (2, head.out_channels, 9, 7) and head.out_channels == out_channels
    convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert {m.in_channels for m in convolutions} >= {head.in_channels}
    assert any(type(module) is ACTIVATIONS[act].module for module in head.modules())


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_fuse_finds_every_layer(name):
    make, _, expected = HEADS[name]
    plain = randomize(make("prelu")).double().eval()
    x = torch.randn(2, plain.in_channels, 9, 7, dtype=torch.float64)
    fused = atrous.fuse(plain)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-9)
    assert patterns(fused) == {pattern.format(act="prelu"): count for pattern, count in expected.items()}
    assert not fused.fusion_report.breaks


class Inputs(TorchDispatchMode):
    """Records the storage of the first argument of each operator that also takes a 4-D weight."""

    def __init__(self):
        super().__init__()
        self.addresses, self.copies = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        maps = [value for value in args if isinstance(value, torch.Tensor) and value.dim() == 4]
        if len(maps) > 1 and "conv" in str(function):
            self.addresses.append(maps[0].data_ptr())
        if str(function).startswith(("aten.clone", "aten._to_copy", "aten.copy_", "aten.contiguous")):
            self.copies.append(args[0].shape)
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_the_branches_of_aspp_read_their_input_where_it_is():
    fused = atrous.fuse(randomize(heads.ASPP(12, 8, (2, 3))).eval())
    x = torch.randn(2, 12, 9, 7).to(memory_format=torch.channels_last)
    fused(x)
    with Inputs() as inputs:
        fused(x)
    assert inputs.addresses.count(x.data_ptr()) == 3 and not inputs.copies  # the fourth reads the mean


@torch.no_grad()
def test_aspp_is_its_equation():
    head = randomize(heads.ASPP(6, 4, (2, 5))).double().eval()
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    *convs, pool = head.convs
    assert [(c[0].kernel_size[0], c[0].dilation[0]) for c in convs] == [(1, 1), (3, 2), (3, 5)]
    pooled = layer(pool[1:], x.mean((2, 3), keepdim=True))
    pooled = F.interpolate(pooled, (9, 7), mode="bilinear", align_corners=False)
    expected = layer(head.project, torch.cat([*(layer(conv, x) for conv in convs), pooled], 1))
    torch.testing.assert_close(head(x), expected)


def test_aspp_has_the_names_and_shapes_of_torchvision():
    with torch.device("meta"):
        shapes = {name: tuple(v.shape) for name, v in heads.ASPP(2048, 256, (12, 24, 36)).state_dict().items()}
    weights = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    assert weights == {
        "convs.0.0.weight": (256, 2048, 1, 1), "convs.1.0.weight": (256, 2048, 3, 3),
        "convs.2.0.weight": (256, 2048, 3, 3), "convs.3.0.weight": (256, 2048, 3, 3),
        "convs.4.1.weight": (256, 2048, 1, 1), "project.0.weight": (256, 1280, 1, 1),
    }  # fmt: skip
    assert {"convs.0.1.running_mean", "convs.4.2.running_var", "project.1.weight"} <= set(shapes)


@torch.no_grad()
def test_hdc_stage_is_its_equation():
    head = randomize(heads.HDCStage(6, 4, (1, 2, 5))).double().eval()
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    convs = [module for module in head.layers if isinstance(module, nn.Conv2d)]
    assert [conv.dilation[0] for conv in convs] == [1, 2, 5]
    y = layer(head.layers[3:], layer(head.layers, x))
    expected = F.relu(layer(head.layers[6:], y, "identity") + layer(head.downsample, x, "identity"))
    torch.testing.assert_close(head(x), expected)


@torch.no_grad()
def test_rates_decide_which_pixels_an_output_reads():
    """Rates 1, 2, 5 leave no gaps, 2, 4, 8 read every second pixel (arXiv:1702.08502, figure 2)."""
    seen = {}
    for rates in ((1, 2, 5), (2, 4, 8)):
        head = heads.HDCStage(1, 1, rates, act="identity", residual=False).double().eval()
        for module in head.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.fill_(1.0)
        x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
        x[0, 0, 20, 20] = 1.0
        seen[rates] = (head(x) != 0)[0, 0, 20].nonzero().flatten().tolist()
    assert seen == {(1, 2, 5): list(range(12, 29)), (2, 4, 8): list(range(6, 35, 2))}


@torch.no_grad()
def test_multi_rate_is_its_equation():
    head = randomize(heads.MultiRate(6, 4, ((1,), (2, 5)))).double().eval()
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    near, far = head.branches
    far_maps = layer(far[3:], layer(far, x))
    assert (near[0].dilation, far[0].dilation, far[3].dilation) == ((1, 1), (2, 2), (5, 5))
    torch.testing.assert_close(head(x), layer(head.merge, torch.cat([layer(near, x), far_maps], 1)))


@torch.no_grad()
def test_upsample_head_is_its_equation():
    head = randomize(heads.UpsampleHead(6, 3, 4)).double().eval()
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    scores = F.conv2d(layer(head.layers, x), head.classifier.weight, head.classifier.bias)
    torch.testing.assert_close(head(x), scores)
    expected = F.interpolate(scores, (70, 60), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(x, (70, 60)), expected)


@pytest.mark.parametrize("head", [
    lambda channels: None,
    lambda channels: heads.ASPP(channels, 8, (2, 3)),
    lambda channels: heads.HDCStage(channels, 8),
    lambda channels: heads.MultiRate(channels, 8),
], ids=["none", "aspp", "hdc", "multi rate"])  # fmt: skip
@pytest.mark.parametrize("backbone, count", [(resnet18, 20), (resnet50, 53)])
@torch.no_grad()
def test_segmenter(backbone, count, head):
    backbone = backbone(width=8, output_stride=8, features_only=True)
    model = randomize(segmenter(backbone, head(backbone.channels[-1]), 5)).eval()
    x = torch.randn(1, 3, 50, 35)
    y = model(x)
    features = model.head(backbone(x)[-1])
    assert y.shape == (1, 5, 50, 35)
    torch.testing.assert_close(y, model.classifier(features, (50, 35)))
    assert sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) == count


@pytest.mark.parametrize("head, layers", [(lambda c: heads.ASPP(c, 8, (2, 3)), 5), (lambda c: None, 0)])
@torch.no_grad()
def test_every_layer_of_a_segmenter_is_fused(head, layers):
    backbone = resnet18(width=8, output_stride=8, hdc=(1, 2, 5), features_only=True)
    model = randomize(segmenter(backbone, head(backbone.channels[-1]), 5)).eval()
    x = torch.randn(1, 3, 33, 47)
    fused = atrous.fuse(model)
    expected = model(x)
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert sum(patterns(fused).values()) == 20 + layers + 1 and not fused.fusion_report.breaks


def test_segmenter_trains_and_takes_modules_of_the_user():
    class Own(nn.Module):
        channels = (4, 6)

        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

        def forward(self, x):
            y = self.conv1(x)
            return [y, self.conv2(y)]

    model = segmenter(Own(), nn.Conv2d(6, 7, 3, padding=1), 2, act="prelu")
    model(torch.randn(2, 3, 16, 16)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("make, message", [
    (lambda: heads.ASPP(0), r"in_channels: expected a positive int, got 0"),
    (lambda: heads.ASPP(8, 0), r"channels: expected a positive int, got 0"),
    (lambda: heads.ASPP(8, 4, ()), r"rates: expected positive ints, got \(\)"),
    (lambda: heads.ASPP(8, 4, 6), r"rates: expected positive ints, got 6"),
    (lambda: heads.ASPP(8, 4, act="gelu"), r"act: expected one of .* got 'gelu'"),
    (lambda: heads.ASPP(8, 4, dropout=2), r"dropout: expected a number from 0 to 1, got 2"),
    (lambda: heads.HDCStage(8, 4, (1, 0)), r"rates: expected positive ints, got \(1, 0\)"),
    (lambda: heads.MultiRate(8, 4, (1, 2)), r"branches: expected a sequence of positive ints for each branch"),
    (lambda: heads.MultiRate(8, 4, ()), r"branches: .* got \(\)"),
    (lambda: heads.UpsampleHead(8, 0), r"num_classes: expected a positive int, got 0"),
    (lambda: segmenter(resnet18(width=8), None, 3), r"backbone: expected a model with features_only=True .* 'ResNet'"),
    (lambda: segmenter(nn.Identity(), None, 3), r"backbone: .* got 'Identity'"),
    (lambda: segmenter(resnet18(width=8, features_only=True), nn.Identity(), 3), r"head: expected None or a module"),
    (lambda: segmenter(resnet18(width=8, features_only=True), heads.HDCStage(8, 8), 3), r"in_channels=64, .* got 8"),
])  # fmt: skip
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
