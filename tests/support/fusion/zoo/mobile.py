"""Mobile networks: depthwise convolutions, activations that no epilogue has, channel shuffles, cheap features."""

import torch
import torch.nn.functional as F
from torch import nn

from .classic import BatchNormAct
from .entry import cb, cbr, conv, entry


@entry("2 conv+bn, conv+bn+add")
class MobileNetV2(nn.Module):
    """An inverted residual: the layers before ReLU6 end at the BatchNorm, the last has no activation."""

    def __init__(self):
        super().__init__()
        depthwise = cbr(8, 8, act=nn.ReLU6(inplace=True), groups=8)
        self.conv = nn.Sequential(cbr(4, 8, 1, nn.ReLU6(inplace=True)), depthwise, *cb(8, 4, 1))
        self.use_res_connect = True

    def forward(self, x):
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


@entry("2 conv+bn+relu, conv+bn+add")
class MnasNet(nn.Module):
    """The sum's left operand is the branch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*cbr(4, 6, 1), *cbr(6, 6, 5, groups=6), *cb(6, 4, 1))

    def forward(self, input):
        return self.layers(input) + input


@entry("3 conv+bn, conv+bn+add", convs=6)
class EfficientNet(nn.Module):
    """SiLU inside the BatchNorm's module, squeeze-and-excite of SiLU and sigmoid, a depthwise stem."""

    def __init__(self):
        super().__init__()
        self.conv_stem, self.bn1 = conv(), self.norm(4)
        self.conv_pw, self.bn2 = conv(4, 8, 1), self.norm(8)
        self.conv_dw, self.bn3 = conv(8, 8, groups=8), self.norm(8)
        self.conv_reduce, self.conv_expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.conv_pwl, self.bn4 = conv(8, 4, 1), BatchNormAct(4, act=False)

    def norm(self, channels):
        bn = BatchNormAct(channels)
        bn.act = nn.SiLU(inplace=True)
        return bn

    def forward(self, x):
        x = shortcut = self.bn1(self.conv_stem(x))
        x = self.bn3(self.conv_dw(self.bn2(self.conv_pw(x))))
        gate = self.conv_expand(F.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)), inplace=True))
        return self.bn4(self.conv_pwl(x * torch.sigmoid(gate))) + shortcut


@entry("3 conv+bn+relu, 2 conv+bn")
class ShuffleNet(nn.Module):
    """Two branches of a stride, then a shuffle of their channels by view and transpose."""

    def __init__(self):
        super().__init__()
        self.branch1 = nn.Sequential(*cb(4, 4, stride=2, groups=4), *cbr(4, 4, 1))
        self.branch2 = nn.Sequential(*cbr(4, 4, 1), *cb(4, 4, stride=2, groups=4), *cbr(4, 4, 1))

    def forward(self, x):
        out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        n, c, h, w = out.size()
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


@entry("2 conv+bn+relu, 2 conv+bn, conv+bn+add")
class GhostNet(nn.Module):
    """Cheap features from features, concatenated and cut to the wanted number of channels; a linear ghost."""

    def __init__(self):
        super().__init__()
        self.primary, self.cheap = cbr(4, 3, 1), cbr(3, 3, groups=3)
        self.primary2, self.cheap2, self.shortcut = cb(5, 2, 1), cb(2, 2, groups=2), cb(4, 4, 1)

    def forward(self, x):
        x1 = self.primary(x)
        y = torch.cat([x1, self.cheap(x1)], dim=1)[:, :5, :, :]
        x1 = self.primary2(y)
        y = torch.cat([x1, self.cheap2(x1)], dim=1)
        return y + self.shortcut(x)


@entry("2 conv+bn+relu", convs=3)
class Separable(nn.Module):
    """Depthwise then pointwise, once with and once without a BatchNorm between."""

    def __init__(self):
        super().__init__()
        self.first, self.depthwise = cbr(groups=4, dilation=2), conv(groups=4)
        self.pointwise, self.bn, self.act = conv(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.pointwise(self.depthwise(self.first(x)))
        return self.act(self.bn(x))


@entry("conv+bn+relu, conv+bn", convs=3)
class SplitAttention(nn.Module):
    """ResNeSt: grouped features, a sum over the groups, a softmax over them, BatchNorm on pooled values."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn0 = conv(4, 8, groups=2), nn.BatchNorm2d(8)
        self.fc1, self.bn1, self.fc2 = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 8, 1)
        self.act0, self.act1 = nn.ReLU(inplace=True), nn.Hardswish(inplace=True)

    def forward(self, x):
        x = self.act0(self.bn0(self.conv(x)))
        b, rc = x.shape[:2]
        x = x.reshape((b, 2, rc // 2, *x.shape[2:]))
        gap = x.sum(dim=1).mean((2, 3), keepdim=True)
        attention = self.fc2(self.act1(self.bn1(self.fc1(gap)))).view(b, 2, -1).softmax(1)
        return (x * attention.view(b, 2, -1, 1, 1)).sum(dim=1).contiguous()
