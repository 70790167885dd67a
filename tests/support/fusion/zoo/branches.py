"""Networks of several branches: dense connections, RepVGG, HRNet, CSP stages, Inception, Res2Net, DLA."""

import torch
import torch.nn.functional as F
from torch import nn

from .entry import cb, cbr, conv, entry


class DenseLayer(nn.Module):
    def __init__(self, channels, growth=3):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, 4, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), conv(4, growth)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, features):
        y = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(y)))


@entry("3 bn+relu, 2 conv+bn+relu", convs=5)
class Dense(nn.Module):
    """DenseNet: a ModuleDict of layers over a growing list, then a transition."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({f"denselayer{i + 1}": DenseLayer(4 + 3 * i) for i in range(2)})
        self.transition = nn.Sequential(nn.BatchNorm2d(10), nn.ReLU(inplace=True), conv(10, 4, 1), nn.AvgPool2d(2))

    def forward(self, x):
        features = [x]
        for _, layer in self.layers.items():
            features.append(layer(features))
        return self.transition(torch.cat(features, 1))


@entry("bn+add+relu, conv+bn+add, conv+bn")
class RepVgg(nn.Module):
    """Three branches, one of them a BatchNorm alone, whose sums are one expression."""

    def __init__(self):
        super().__init__()
        self.rbr_identity, self.rbr_dense, self.rbr_1x1 = nn.BatchNorm2d(4), nn.Sequential(), nn.Sequential()
        self.rbr_dense.add_module("conv", conv())
        self.rbr_dense.add_module("bn", nn.BatchNorm2d(4))
        self.rbr_1x1.add_module("conv", conv(kernel=1))
        self.rbr_1x1.add_module("bn", nn.BatchNorm2d(4))
        self.nonlinearity, self.se = nn.ReLU(), nn.Identity()

    def forward(self, inputs):
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return self.nonlinearity(self.se(self.rbr_dense(inputs) + self.rbr_1x1(inputs) + id_out))


@entry("2 conv+bn+relu, conv+bn, add+relu, conv+bn+add+relu")
class HighResolution(nn.Module):
    """HRNet's exchange between two resolutions: nested ModuleLists with None in them."""

    def __init__(self):
        super().__init__()
        self.transition = nn.ModuleList([cbr(), cbr(4, 6, stride=2)])
        up = nn.Sequential(*cb(6, 4, 1), nn.Upsample(scale_factor=2, mode="nearest"))
        self.fuse_layers = nn.ModuleList([nn.ModuleList([None, up]), nn.ModuleList([cb(4, 6, stride=2), None])])
        self.relu = nn.ReLU(False)

    def forward(self, x):
        x = [transition(x) for transition in self.transition]
        fused = []
        for i in range(len(self.fuse_layers)):
            y = x[0] if i == 0 else self.fuse_layers[i][0](x[0])
            for j in range(1, len(x)):
                y = y + x[j] if i == j else y + self.fuse_layers[i][j](x[j])
            fused.append(self.relu(y))
        return fused


class YoloConv(nn.Module):
    def __init__(self, i, o, kernel=1, act=None):
        super().__init__()
        self.conv, self.bn, self.act = conv(i, o, kernel), nn.BatchNorm2d(o), act or nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class YoloBottleneck(nn.Module):
    def __init__(self, channels, act):
        super().__init__()
        self.cv1, self.cv2, self.add = YoloConv(channels, channels, 3, act), YoloConv(channels, channels, 3, act), True

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class CrossStage(nn.Module):
    """YOLO's C2f: chunk, a list that a generator extends, cat; the residual is a slice of a larger tensor."""

    def __init__(self, act=None):
        super().__init__()
        self.cv1, self.cv2 = YoloConv(4, 8, act=act), YoloConv(12, 4, act=act)
        self.m = nn.ModuleList([YoloBottleneck(4, act)])

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


@entry("3 conv+bn+leaky_relu, conv+bn+leaky_relu+add")
def c2f_leaky():
    return CrossStage()


@entry("4 conv+bn")
def c2f_silu():
    return CrossStage(nn.SiLU(inplace=True))


@entry("conv+bn+leaky_relu, conv+bn+leaky_relu+add")
class Darknet(nn.Module):
    """The residual comes after the activation and is the left operand."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = YoloConv(4, 2), YoloConv(2, 4, 3)

    def forward(self, x):
        shortcut = x
        x = self.conv2(self.conv1(x))
        return x + shortcut


@entry("4 conv+bn+relu")
class Inception(nn.Module):
    """Functional ReLUs in place, a pooled branch, results of a list concatenated."""

    def __init__(self):
        super().__init__()
        self.b1, self.b2a, self.b2b, self.b3 = cb(4, 2, 1), cb(4, 2, 1), cb(2, 3), cb(4, 2, 1)

    def forward(self, x):
        branches = [self.b1(x), self.b2b(F.relu(self.b2a(x), inplace=True)), self.b3(F.max_pool2d(x, 3, 1, 1))]
        return torch.cat([F.relu(branch, inplace=True) for branch in branches], 1)


@entry("3 conv+bn+relu, conv+bn+add+relu")
class Res2Net(nn.Module):
    """Splits, and each part but the first gets the part before it added ahead of its convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv3 = cbr(4, 4, 1), cb(4, 4, 1)
        self.convs, self.bns = nn.ModuleList([conv(2, 2), conv(2, 2)]), nn.ModuleList([nn.BatchNorm2d(2) for _ in "12"])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        spx = torch.split(self.conv1(x), 2, 1)
        spo, sp = [], spx[0]
        for i, (c, bn) in enumerate(zip(self.convs, self.bns)):
            sp = spx[i] if i == 0 else sp + spx[i]
            sp = self.relu(bn(c(sp)))
            spo.append(sp)
        out = self.conv3(torch.cat(spo, 1))
        out += x
        return self.relu(out)


@entry("2 conv+bn+relu, conv+bn+add+relu")
class DeepLayerAggregation(nn.Module):
    """DLA's root: a variable number of children is concatenated, and the first is added."""

    def __init__(self):
        super().__init__()
        self.tree1, self.tree2, self.conv, self.bn = cbr(), cbr(), conv(8, 4, 1), nn.BatchNorm2d(4)
        self.relu, self.residual = nn.ReLU(inplace=True), True

    def root(self, *children):
        x = self.bn(self.conv(torch.cat(children, 1)))
        if self.residual:
            x += children[0]
        return self.relu(x)

    def forward(self, x):
        x1 = self.tree1(x)
        return self.root(self.tree2(x1), x1)
