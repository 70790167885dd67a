"""dilate_ on models written as torchvision, timm and their users write them; and the models that it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from outcomes import randomize
from torch import nn

from atrous.models import dilate_, resnet18, resnet34, resnet50
from atrous.models.dilated_pool import DilatedPool2d


def conv(i, o, kernel=3, stride=1, **more):
    return nn.Conv2d(i, o, kernel, stride, padding=kernel // 2, bias=False, **more)


class Basic(nn.Module):
    """torchvision's BasicBlock: one ReLU, the stride as an attribute."""

    def __init__(self, i, o, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(i, o, 3, stride), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = conv(o, o), nn.BatchNorm2d(o)
        self.relu, self.stride, self.downsample = nn.ReLU(inplace=True), stride, self.shortcut(i, o, stride)

    def shortcut(self, i, o, stride):
        return nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o)) if stride != 1 or i != o else None

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class NeXt(Basic):
    """torchvision's Bottleneck of a ResNeXt, with groups."""

    def __init__(self, i, o, stride=1):
        super().__init__(i, o, stride)
        self.conv1, self.conv2 = conv(i, 4, 1), conv(4, 4, 3, stride, groups=2)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = conv(4, o, 1), nn.BatchNorm2d(o)

    def forward(self, x):
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNetD(Basic):
    """timm's downsample_avg: an average pool in the shortcut."""

    def shortcut(self, i, o, stride):
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride != 1 else nn.Identity()
        return nn.Sequential(pool, conv(i, o, 1), nn.BatchNorm2d(o))


class Excited(Basic):
    """Squeeze-and-excitation: the features are multiplied by a function of their mean."""

    def __init__(self, i, o, stride=1):
        super().__init__(i, o, stride)
        self.fc = nn.Conv2d(o, o, 1)

    def forward(self, x):
        y = super().forward(x)
        return y * self.fc(y.mean((2, 3), keepdim=True)).sigmoid()


class Net(nn.Module):
    """Five stages of stride 2 to 32, as a ResNet has them; returns the maps, or scores with a classifier."""

    def __init__(self, block=Basic, classes=0):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(3, 4, 7, 2), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(block(4, 4), block(4, 4))
        self.layer2, self.layer3, self.layer4 = (nn.Sequential(block(4, 4, 2), block(4, 4)) for _ in range(3))
        self.pool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(4, classes) if classes else None

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = [x]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return self.fc(torch.flatten(self.pool(maps[-1]), 1)) if self.fc else maps


def cbr(i, o, **more):
    return nn.Sequential(conv(i, o, **more), nn.BatchNorm2d(o), nn.ReLU())


class Maps(nn.Sequential):
    """Returns the output of each child."""

    def forward(self, x):
        maps = []
        for layer in self:
            x = layer(x)
            maps.append(x)
        return maps


def vgg():
    """Max pools between the stages; the last ones are dilated."""
    pools = [nn.MaxPool2d(3, 2, 1) for _ in range(4)]
    return Maps(*(layer for pool in pools for layer in (cbr(3 if pool is pools[0] else 4, 4), pool)), cbr(4, 4))


def dense():
    """DenseNet's transitions: average pools that are strided."""
    return Maps(cbr(3, 4, stride=2), *(m for _ in range(3) for m in (cbr(4, 4), nn.AvgPool2d(2))), cbr(4, 4))


def mobile():
    """Depthwise convolutions of 3x3 and 5x5 with strides, padding="same" where there is none."""
    same = nn.Conv2d(4, 4, 3, padding="same", groups=4)
    return Maps(cbr(3, 4, stride=2), cbr(4, 4, kernel=5, stride=2, groups=4), cbr(4, 4, stride=2, groups=4), same)


def patches():
    """ConvNeXt's: 4x4 and 2x2 convolutions whose stride is their size."""
    return Maps(nn.Conv2d(3, 4, 4, 4), conv(4, 4, 7, groups=4), nn.Conv2d(4, 4, 2, 2), conv(4, 4, 7, groups=4))


def strides_of(model):
    """Strides, dilations and paddings of all convolutions and pools."""
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, DilatedPool2d)
    return [(m.stride, m.padding, getattr(m, "dilation", 1)) for m in model.modules() if isinstance(m, kinds)]


@pytest.mark.parametrize("model, output_stride, steps, size", [
    (Net, 8, (1, 1, 1, 2, 4), (65, 97)), (Net, 16, (1, 1, 1, 1, 2), (64, 47)), (Net, 2, (2, 2, 4, 8, 16), (64, 64)),
    (Net, 1, (4, 4, 8, 16, 32), (33, 40)),
    (lambda: Net(NeXt), 8, (1, 1, 1, 2, 4), (50, 61)),
    (lambda: Net(ResNetD), 8, (1, 1, 1, 2, 4), (65, 97)), (lambda: Net(ResNetD), 2, (2, 2, 4, 8, 16), (64, 70)),
    (vgg, 4, (1, 1, 1, 1, 1, 2, 2, 4, 4), (65, 50)), (vgg, 2, (1, 1, 1, 2, 2, 4, 4, 8, 8), (64, 64)),
    (dense, 4, (1, 1, 1, 1, 2, 2, 4, 4), (64, 96)), (dense, 2, (1, 1, 2, 2, 4, 4, 8, 8), (71, 61)),
    (mobile, 2, (1, 2, 4, 4), (47, 64)), (patches, 4, (1, 1, 2, 2), (64, 96)),
])  # fmt: skip
@torch.no_grad()
def test_dilated_features_contain_the_strided_ones(model, output_stride, steps, size):
    """On images of other sizes than the one that dilate_ tries, odd ones included."""
    strided = randomize(model()).double().eval()
    dilated = copy.deepcopy(strided)
    assert dilate_(dilated, output_stride) is dilated
    x = torch.randn(2, 3, *size, dtype=torch.double)
    for step, y, whole in zip(steps, strided(x), dilated(x), strict=True):
        assert y.abs().max() > 0
        torch.testing.assert_close(whole[..., ::step, ::step], y, rtol=1e-9, atol=1e-9)
    assert dilated.state_dict().keys() == strided.state_dict().keys()


@pytest.mark.parametrize("make", [resnet18, resnet34, resnet50])
@pytest.mark.parametrize("output_stride", [4, 8, 16])
def test_it_is_the_output_stride_of_our_resnets(make, output_stride):
    model = dilate_(make(width=4, features_only=True), output_stride)
    assert strides_of(model) == strides_of(make(width=4, features_only=True, output_stride=output_stride))


def test_it_may_be_repeated():
    twice = dilate_(dilate_(Net(ResNetD), 16), 4)
    assert strides_of(twice) == strides_of(dilate_(Net(ResNetD), 4))


def test_strides_that_blocks_note_follow():
    model = dilate_(Net(), 8)
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert [[block.stride for block in stage] for stage in stages] == [[1, 1], [2, 1], [1, 1], [1, 1]]


def test_mode_dtype_values_and_generator_stay():
    model = Net(classes=5).half()
    model.layer3.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    dilate_(model, 16)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()] and torch.equal(state, torch.get_rng_state())
    assert all(not module._forward_hooks for module in model.modules())
    assert model.float()(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_a_single_channel_and_an_input_of_the_user():
    model = Net()
    model.conv1 = conv(1, 4, 7, 2)
    dilate_(model, 8)
    other = Net()
    dilate_(other, 8, torch.randn(1, 3, 128, 64, dtype=torch.half))
    assert strides_of(model) == strides_of(other)


@torch.no_grad()
@pytest.mark.parametrize("pool", [
    nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d((3, 2), (2, 1), (1, 0)),
    nn.AvgPool2d(2), nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d((2, 3)), nn.AvgPool2d(3, 1),
])  # fmt: skip
def test_pools_with_dilation(pool):
    """Every step-th value of an undilated map is the pool's; so it is on the grids of maps that are finer still."""
    for size in ((12, 18), (13, 15), (14, 17)):
        x = torch.randn(2, 3, *size, dtype=torch.double)
        stride = pool.stride if isinstance(pool.stride, tuple) else (pool.stride,) * 2
        assert torch.equal(DilatedPool2d(pool, stride, (1, 1))(x), pool(x)) or isinstance(pool, nn.AvgPool2d)
        for dilation in (1, 2, 3):
            whole = DilatedPool2d(pool, (1, 1), (dilation, dilation))(x)
            values = whole[..., :: dilation * stride[0], :: dilation * stride[1]]
            torch.testing.assert_close(values, pool(x[..., ::dilation, ::dilation]))
    assert DilatedPool2d(nn.MaxPool2d(2), (1, 1), (2, 2))(torch.randn(1, 1, 8, 8)).shape == (1, 1, 8, 8)


class Untrained(Excited):
    """timm's zero_init_last: each block is the identity until it is trained."""

    def __init__(self, i, o, stride=1):
        super().__init__(i, o, stride)
        nn.init.zeros_(self.bn2.weight)


class Functional(Net):
    """A stride that no module has."""

    def forward(self, x):
        y = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        return self.layer4(F.max_pool2d(y, 2))


class Blur(nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, 2)


class Indices(nn.Module):
    """SegNet's encoder."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = conv(3, 4, 3, 2), nn.MaxPool2d(2, return_indices=True)

    def forward(self, x):
        return self.pool(self.conv(x))


class TwoScales(nn.Module):
    """One convolution at two strides."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.head = conv(3, 4, 3, 2), conv(4, 4, 3, 2), conv(4, 4)

    def forward(self, x):
        y = self.stem(x)
        return self.head(y), self.head(self.down(y))


class Decoder(Net):
    def __init__(self):
        super().__init__()
        self.merge = conv(4, 4)

    def forward(self, x):
        *_, c4, c5 = super().forward(x)
        return self.merge(c4 + F.interpolate(c5, scale_factor=2))


def sequence(*layers):
    return lambda: nn.Sequential(cbr(3, 4, stride=2), *layers, cbr(4, 4, stride=2), cbr(4, 4))


@pytest.mark.parametrize("make, output_stride, message", [
    (Net, 32, r"output_stride: expected one of 1, 2, 4, 8, 16, strides .* below its output stride 32, got 32"),
    (Net, 64, r"output_stride: .* got 64"),
    (Net, 3, r"output_stride: .* got 3"),
    (Net, 0, r"output_stride: expected a positive int, got 0"),
    (Net, 8.0, r"output_stride: expected a positive int, got 8.0"),
    (lambda: cbr(3, 4), 8, r"model: expected strided convolutions or pools, which dilation replaces, got none"),
    (lambda: Net().to("meta"), 8, r"model: expected parameters with values to try, got the meta device"),
    (lambda: nn.Linear(3, 4), 8, r"model: expected strides of .* got Linear without nn.Conv2d"),
    (lambda: nn.Sequential(conv(3, 4), nn.Linear(5, 5)), 8, r"model: the model raises for .* \(1, 3, 64, 96\): "),
    (lambda: Net(Excited), 8, r"model: expected features .* but those of layer3.0 \(Excited\) differ: .* mean"),
    (lambda: Net(Untrained), 8, r"model: expected features .* but those of layer3.0 \(Untrained\) differ: .* mean"),
    (Functional, 4, r"model: expected features .* but those of layer4.0.downsample.0 \(Conv2d\) have shape"),
    (Decoder, 8, r"model: the dilated model raises .* The size of tensor"),
    (sequence(Blur()), 2, r"model: expected strides of nn.Conv2d, .*, got 1 \(Blur\), which maps \(32, 48\) to \(16"),
    (sequence(nn.ConvTranspose2d(4, 4, 2, 2), conv(4, 4, 3, 2)), 1, r"got 1 \(ConvTranspose2d\), which maps"),
    (sequence(nn.LPPool2d(2, 2)), 2, r"model: expected strides of .* got 1 \(LPPool2d\)"),
    (sequence(nn.AvgPool2d(3, 2, 1)), 2, r"model: expected average pools without padding .* got 1 \(AvgPool2d\)"),
    (sequence(conv(4, 4, 3, 2), conv(4, 4, padding_mode="reflect")), 2, r"model: expected zero padding .* 2 .* refl"),
    (sequence(conv(4, 4, 3, 2), nn.Conv2d(4, 4, 3)), 2, r"model: expected maps that divide \(64, 96\).* 2 \(Conv"),
    (Indices, 2, r"model: expected max pools without return_indices .* got pool \(MaxPool2d\)"),
    (TwoScales, 2, r"model: expected modules that work at one stride each, but head \(Conv2d\) works at several"),
    (lambda: Maps(*(cbr(3 if i == 0 else 4, 4, stride=2) for i in range(6))), 8, r"another x may help"),
])  # fmt: skip
def test_models_that_cannot_be_dilated_are_refused_and_stay(make, output_stride, message):
    model = make()
    before = strides_of(model)
    with pytest.raises(ValueError, match=message):
        dilate_(model, output_stride)
    assert strides_of(model) == before and all(not module._forward_hooks for module in model.modules())


def test_bad_types():
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got str"):
        dilate_("resnet18", 8)
    for x in (3, torch.zeros(3, 64, 64)):
        with pytest.raises(ValueError, match="x: expected None or a tensor"):
            dilate_(Net(), 8, x)
