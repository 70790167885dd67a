"""Fields beside autograd: the gradient of one output position is zero exactly where the audit says it reads none."""

import copy
import random

import pytest
import torch
from torch import nn

import atrous

LINEAR = (nn.BatchNorm2d, nn.ReLU, nn.PReLU, nn.LeakyReLU, nn.SiLU)


def positive(model):
    """A linear copy whose weights are positive, in fp64: average pooling for max-pooling, nothing for other layers."""
    model = copy.deepcopy(model).double().eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(parent, name, pool if child.dilation == 1 else DilatedPool(child))
            elif isinstance(child, LINEAR):
                setattr(parent, name, nn.Identity())
    for parameter in model.parameters():
        parameter.data.uniform_(0.5, 1.5)
    return model


class DilatedPool(nn.Module):
    """Average pooling with dilation, of a max-pooling's geometry."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        p, channels = self.pool, x.shape[1]
        weight = torch.ones(channels, 1, p.kernel_size, p.kernel_size, dtype=x.dtype)
        return nn.functional.conv2d(x, weight, None, p.stride, p.padding, p.dilation, channels)


def last(output):
    return output[-1] if isinstance(output, (list, tuple)) else output


def read_by_autograd(model, shape):
    """The mask of the pixels that the middle of the model's last map depends on."""
    image = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    output = last(positive(model)(image))
    output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()
    return image.grad[0].sum(0) != 0


def read_by_audit(model, shape):
    """The same mask, from the audit."""
    audit = atrous.audit_dilation(model, shape[1:])
    mask = torch.zeros(shape[2:], dtype=torch.bool)
    top, left = (size // 2 - center for size, center in zip(shape[2:], audit.center))
    height, width = audit.receptive_field
    assert top >= 0 and left >= 0 and top + height <= shape[2] and left + width <= shape[3], (
        "an image that is too small"
    )
    mask[top : top + height, left : left + width] = audit.profile != 0
    assert audit.reached == mask.sum() and audit.holes == height * width - audit.reached
    return mask


def assert_same_field(model, shape):
    expected = read_by_autograd(model, shape)
    assert 0 < expected.sum() < expected.numel()
    assert torch.equal(read_by_audit(model, shape), expected)


class Residual(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        y = self.body(x)
        y += x
        return y


class Branches(nn.Module):
    """Branches whose maps have one size, concatenated, and mixed by a 1x1 convolution."""

    def __init__(self, branches, channels):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.mix = nn.Conv2d(channels * len(branches), channels, 1)

    def forward(self, x):
        return self.mix(torch.cat([branch(x) for branch in self.branches], 1))


class SqueezeExcite(nn.Module):
    """Scales by a global branch, which is no part of the field: it is left out of the linear copy."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        scale = torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))
        return x * (torch.ones_like(scale) if x.dtype == torch.float64 else scale)


class Shuffled(nn.Module):
    """Channel shuffle by view and transpose, as in ShuffleNet."""

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ChannelsLast(nn.Module):
    """A linear layer over the channels of an NHWC view, as in ConvNeXt."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x):
        return self.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Sliced(nn.Module):
    """Every second position, from the second on, as YOLO's Focus takes them."""

    def forward(self, x):
        return x[..., 1::2, ::2]


class Even(nn.Module):
    """Cut to an even size."""

    def forward(self, x):
        return x[..., : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]


class Upsampled(nn.Module):
    def __init__(self, mode, scale):
        super().__init__()
        self.mode, self.scale = mode, scale

    def forward(self, x):
        corners = {} if "nearest" in self.mode else {"align_corners": False}
        return nn.functional.interpolate(x, scale_factor=self.scale, mode=self.mode, **corners)


class Padded(nn.Module):
    def forward(self, x):
        return nn.functional.pad(x, (2, 1, 0, 3))


def random_conv(draw, channels):
    kernel = [draw.randint(1, 4), draw.randint(1, 4)]
    dilation = [draw.randint(1, 3), draw.randint(1, 3)]
    padding = [draw.randint(0, d * (k - 1) // 2 + 1) for d, k in zip(dilation, kernel)]
    return nn.Conv2d(
        channels, channels, kernel, draw.choice([1, 1, 2]), padding, dilation, draw.choice([1, channels])
    )  # fmt: skip


def random_layer(draw, channels):
    same = lambda: nn.Conv2d(channels, channels, 3, padding=(rate := draw.randint(1, 4)), dilation=rate)  # noqa: E731
    kinds = [
        lambda: random_conv(draw, channels), lambda: random_conv(draw, channels),
        lambda: nn.Conv2d(channels, channels, draw.randint(2, 4), padding="same", dilation=draw.randint(1, 3)),
        lambda: nn.MaxPool2d(draw.randint(2, 3), draw.randint(1, 2), draw.randint(0, 1), draw.randint(1, 2)),
        lambda: nn.AvgPool2d(2, draw.randint(1, 2)),
        lambda: Residual(nn.Sequential(same(), nn.BatchNorm2d(channels), nn.ReLU(), same())),
        lambda: Branches([same(), nn.Sequential(same(), same()), nn.Identity()], channels),
        lambda: SqueezeExcite(channels), Shuffled, lambda: ChannelsLast(channels), Sliced, Padded,
    ]  # fmt: skip
    ups = [
        lambda: nn.ConvTranspose2d(channels, channels, draw.randint(2, 4), 2, draw.randint(0, 1)),
        lambda: Upsampled("nearest", draw.choice([2, 3])), lambda: Upsampled("nearest-exact", 2),
        lambda: Upsampled("bilinear", draw.choice([2, 4])), lambda: Upsampled("bicubic", 2),
        lambda: nn.Sequential(nn.Conv2d(channels, 4 * channels, 1), nn.PixelShuffle(2)),
        lambda: nn.Sequential(Even(), nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, channels, 1)),
    ]  # fmt: skip
    return draw.choice(ups if draw.random() < 0.25 else kinds)()


MORE = [pytest.param(seed, marks=[pytest.mark.gate, pytest.mark.drawn(4)]) for seed in range(8, 60)]


@pytest.mark.parametrize("seed", [*range(8), *MORE])
def test_random_models(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    channels = draw.choice([2, 4])
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *(random_layer(draw, channels) for _ in range(4)))
    assert_same_field(model, (1, 3, 200 + draw.randint(0, 20), 208))


@pytest.mark.parametrize("seed", range(12))
def test_random_rates(seed):
    """A list of rates is a sequence of convolutions that keep the size."""
    draw = random.Random(seed)
    rates = [draw.randint(1, 6) for _ in range(draw.randint(1, 5))]
    kernels = [draw.randint(1, 4) for _ in rates]
    model = nn.Sequential(*(nn.Conv2d(1, 1, k, padding="same", dilation=r) for r, k in zip(rates, kernels)))
    shape = (1, 1, 160, 160)
    assert_same_field(model, shape)
    whole, listed = atrous.audit_dilation(model, shape[1:]), atrous.audit_dilation(rates, 160, kernels)
    assert torch.equal(whole.profile, listed.profile) and whole.center == listed.center
    assert [layer.padding_share for layer in whole.layers] == [layer.padding_share for layer in listed.layers]
