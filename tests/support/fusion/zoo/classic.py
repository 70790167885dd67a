"""Residual networks as torchvision, timm, Hugging Face and their predecessors write them."""

import torch.nn.functional as F
from torch import nn

from .entry import cb, cbr, conv, entry


class Basic(nn.Module):
    """torchvision's BasicBlock: one in-place ReLU used twice, an in-place sum."""

    def __init__(self, i=4, o=4, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(i, o, stride=stride), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = conv(o, o), nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = cb(i, o, 1, stride=stride) if stride != 1 or i != o else None

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


@entry("3 conv+bn+relu, 2 conv+bn+add+relu, conv+bn")
class TorchvisionBasic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Basic(), Basic(4, 6, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(6, 3)

    def forward(self, x):
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(x).flatten(1))


@entry("2 conv+bn+relu, conv+bn+add+relu, conv+bn")
class TorchvisionBottleneck(nn.Module):
    """With groups and a dilation, as in ResNeXt with an output stride."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(4, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = conv(4, 4, groups=2, dilation=2), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = conv(4, 8, 1), nn.BatchNorm2d(8)
        self.relu, self.downsample = nn.ReLU(inplace=True), cb(4, 8, 1)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return self.relu(out)


class BatchNormAct(nn.BatchNorm2d):
    """timm's BatchNormAct2d: BatchNorm, dropout and activation in one module, which is a BatchNorm2d itself."""

    def __init__(self, channels, act=True, drop=None):
        super().__init__(channels)
        self.drop = nn.Identity() if drop is None else nn.Dropout(drop)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x):
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        training = self.training or (self.running_mean is None and self.running_var is None)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, factor, self.eps
        )  # fmt: skip
        return self.act(self.drop(x))


class DropPath(nn.Module):
    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)


@entry("2 conv+bn+relu, conv+bn+add+relu", "2 conv+bn+relu, conv+bn, add+relu")
class TimmBottleneck(nn.Module):
    """BatchNorm and activation in one module, drop path between the last BatchNorm and the sum."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = conv(4, 4, 1), BatchNormAct(4)
        self.conv2, self.norm2 = conv(), BatchNormAct(4)
        self.conv3, self.norm3 = conv(4, 4, 1), BatchNormAct(4, act=False)
        self.drop_path, self.act3 = DropPath(0.3), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm1(self.conv1(x))
        y = self.norm3(self.conv3(self.norm2(self.conv2(y))))
        y = self.drop_path(y) + x
        return self.act3(y)


@entry("bn+relu, conv+bn+relu, conv+add | bn+relu, conv+bn+relu", convs=2)
class PreActivation(nn.Module):
    """ResNet v2: BatchNorm and ReLU precede each convolution; the sum has no activation."""

    def __init__(self):
        super().__init__()
        self.bn1, self.conv1, self.bn2, self.conv2 = nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4), conv()

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + x


@entry("conv+bn+relu, conv+bn, conv+relu, add+relu", convs=4)
class SqueezeAndExcite(nn.Module):
    """SE between the BatchNorm and the sum, of 1x1 convolutions with biases."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.relu = cbr(), cb(), nn.ReLU(inplace=True)
        self.reduce, self.expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x):
        y = self.conv2(self.conv1(x))
        gate = y.mean((2, 3), keepdim=True)
        gate = self.expand(self.relu(self.reduce(gate)))
        y = y * gate.sigmoid()
        y += x
        return self.relu(y)


class HuggingFaceLayer(nn.Module):
    def __init__(self, i, o, kernel=3, stride=1, activation="relu"):
        super().__init__()
        self.convolution, self.normalization = conv(i, o, kernel, stride=stride), nn.BatchNorm2d(o)
        self.activation = {"relu": nn.ReLU(), None: nn.Identity()}[activation]

    def forward(self, input):
        hidden_state = self.convolution(input)
        hidden_state = self.normalization(hidden_state)
        return self.activation(hidden_state)


@entry("conv+bn+relu, conv+bn+add+relu, conv+bn")
class HuggingFaceBlock(nn.Module):
    """The activation from a table by its name; keyword calls; a sum in place on the last layer's output."""

    def __init__(self):
        super().__init__()
        self.shortcut = HuggingFaceLayer(4, 6, 1, 2, activation=None)
        self.layer = nn.Sequential(HuggingFaceLayer(4, 6, stride=2), HuggingFaceLayer(6, 6, activation=None))
        self.activation = nn.ReLU()

    def forward(self, hidden_state):
        residual = hidden_state
        hidden_state = self.layer(hidden_state)
        residual = self.shortcut(input=residual)
        hidden_state += residual
        return self.activation(hidden_state)


@entry("3 conv+bn+relu")
class Vgg(nn.Module):
    """Convolutions with biases before their BatchNorms; a classifier behind flatten."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 4
        for v in (6, 6, "M", 8):
            layers += [nn.MaxPool2d(2, 2)] if v == "M" else [*cbr(channels, v, bias=True)]
            channels = channels if v == "M" else v
        self.features, self.classifier = nn.Sequential(*layers), nn.Sequential(nn.Linear(8 * 16, 3), nn.ReLU(True))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))
