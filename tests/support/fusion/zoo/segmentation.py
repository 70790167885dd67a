"""Segmentation networks as segmentation_models_pytorch, MONAI and mmseg write them."""

import torch
import torch.nn.functional as F
from torch import nn

from .entry import cbr, conv, entry


class AtrousPooling(nn.Sequential):
    def __init__(self):
        super().__init__(nn.AdaptiveAvgPool2d(1), *cbr(4, 3, 1))

    def forward(self, x):
        size = x.shape[-2:]
        for mod in self:
            x = mod(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@entry("6 conv+bn+relu", "5 conv+bn+relu, conv+bn+relu+dropout", random=True, pixel=True)
class AtrousPyramid(nn.Module):
    """ASPP of DeepLabV3: a ModuleList of rates and of a pooled branch, a projection with dropout."""

    def __init__(self):
        super().__init__()
        rates = [cbr(4, 3, dilation=rate) for rate in (2, 3, 4)]
        self.convs = nn.ModuleList([cbr(4, 3, 1), *rates, AtrousPooling()])
        self.project = nn.Sequential(*cbr(15, 4, 1), nn.Dropout(0.5))

    def forward(self, x):
        return self.project(torch.cat([branch(x) for branch in self.convs], dim=1))


class DoubleConv(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.double_conv = nn.Sequential(*cbr(i, o, bias=True), *cbr(o, o, bias=True))

    def forward(self, x):
        return self.double_conv(x)


@entry("8 conv+bn+relu", convs=9)
class UNet(nn.Module):
    """Skips by cat, with a padding to their size, behind bilinear and behind transposed upsampling; a bare head."""

    def __init__(self):
        super().__init__()
        self.inc, self.down, self.bottom = DoubleConv(4, 4), DoubleConv(4, 4), DoubleConv(4, 4)
        self.pool, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.dec1, self.dec2, self.outc = cbr(8, 4), cbr(8, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down(self.pool(x1))
        y = self.up(self.bottom(self.pool(x2)))
        dy, dx = x2.size(2) - y.size(2), x2.size(3) - y.size(3)
        y = F.pad(y, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        y = self.dec1(torch.cat([x2, y], dim=1))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
        return self.outc(self.dec2(torch.cat([y, x1], dim=1)))


class ActNormDrop(nn.Sequential):
    """MONAI's ADN: normalization, dropout and activation under the names N, D, A, in the order of a string."""

    def __init__(self, channels, ordering="NDA", dropout=None):
        super().__init__()
        ops = {"A": nn.PReLU(), "N": nn.BatchNorm2d(channels), "D": dropout and nn.Dropout(dropout)}
        for item in ordering.upper():
            if ops[item] is not None:
                self.add_module(item, ops[item])


class Convolution(nn.Sequential):
    def __init__(self, i, o, stride=1, dropout=None):
        super().__init__()
        self.add_module("conv", nn.Conv2d(i, o, 3, stride, padding=1))
        self.add_module("adn", ActNormDrop(o, dropout=dropout))


@entry("conv+bn+prelu, conv+bn+prelu+add | 2 conv+bn+prelu, conv+add", "2 conv+bn, conv+add | 2 conv+bn", convs=3,
       random=True)  # fmt: skip
class ResidualUnit(nn.Module):
    """MONAI's: Sequentials of Sequentials, a residual that is a convolution with a bias alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential()
        self.conv.add_module("unit0", Convolution(4, 6, 2, dropout=0.2))
        self.conv.add_module("unit1", Convolution(6, 6, dropout=0.2))
        self.residual = nn.Conv2d(4, 6, 3, 2, padding=1)

    def forward(self, x):
        res = self.residual(x)
        return self.conv(x) + res


class ConvModule(nn.Module):
    """mmcv's: the layers in an order given by names, the norm under a name of its own, flags for each."""

    def __init__(self, i, o, order=("conv", "norm", "act"), act=True):
        super().__init__()
        self.order, self.with_activation, self.norm_name = order, act, "bn"
        self.conv = conv(i, o)
        self.add_module(self.norm_name, nn.BatchNorm2d(o if order.index("norm") > order.index("conv") else i))
        self.activate = nn.ReLU(inplace=True) if act else None

    @property
    def norm(self):
        return getattr(self, self.norm_name) if self.norm_name else None

    def forward(self, x, activate=True, norm=True):
        for layer in self.order:
            if layer == "conv":
                x = self.conv(x)
            elif layer == "norm" and norm and self.norm is not None:
                x = self.norm(x)
            elif layer == "act" and activate and self.with_activation:
                x = self.activate(x)
        return x


@entry("conv+bn+relu, conv+bn, bn+relu, conv+relu", convs=4)
class ConvModules(nn.Module):
    """mmseg: one without an activation, one of another order, one whose norm is switched off at the call."""

    def __init__(self):
        super().__init__()
        self.a, self.b = ConvModule(4, 4), ConvModule(4, 4, act=False)
        self.c, self.d = ConvModule(4, 4, ("norm", "act", "conv")), ConvModule(4, 4)

    def forward(self, x):
        return self.d(self.c(torch.tanh(self.b(self.a(x)))), norm=False)


@entry("3 conv+bn+relu, conv+add | 3 conv+bn+relu", convs=7)
class FeaturePyramid(nn.Module):
    """Laterals with biases, a sum in place with an upsampled map, an OrderedDict of results."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([cbr(), cbr(4, 6, stride=2)])
        self.inner = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(6, 4, 1)])
        self.outer = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])
        self.head = cbr(4, 3, 1)

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        last = self.inner[1](features[1])
        results = [self.outer[1](last)]
        lateral = self.inner[0](features[0])
        lateral += F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
        results.insert(0, self.outer[0](lateral))
        return {"fine": self.head(results[0]), "coarse": results[1]}


@entry("4 conv+bn+relu", convs=5, pixel=True)
class PyramidPooling(nn.Module):
    """PSPNet: a ModuleList of pools and convolutions, each result interpolated, then cat."""

    def __init__(self):
        super().__init__()
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), *cbr(4, 2, 1)) for n in (1, 2, 3))
        self.bottleneck, self.classify = cbr(10, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        pooled = [F.interpolate(pool(x), size=x.shape[2:], mode="bilinear", align_corners=False) for pool in self.pools]
        return self.classify(self.bottleneck(torch.cat([x, *pooled], dim=1)))


@entry("3 conv+bn+relu, conv+add | 3 conv+bn+relu", convs=4)
class PoolingAndPyramid(nn.Module):
    """UPerNet: a pooled branch of one pixel, on whose strides torch.compile and eager differ, and a sum."""

    def __init__(self):
        super().__init__()
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), *cbr(4, 2, 1))
        self.down, self.bottleneck = nn.AvgPool2d(2), cbr(6, 4)
        self.inner, self.head = nn.Conv2d(4, 4, 1), cbr(4, 3)

    def forward(self, x):
        coarse = self.down(x)
        pooled = F.interpolate(self.pooled(coarse), size=coarse.shape[2:], mode="bilinear", align_corners=False)
        coarse = self.bottleneck(torch.cat([coarse, pooled], dim=1))
        return self.head(self.inner(x) + F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=False))
