"""Heads for dilated backbones: blocks that read a feature map at several dilations, and the layers that classify it.

Each maps (N, in_channels, H, W) to (N, out_channels, H, W), any floating type, and has these two numbers as attributes.
act: "identity", "relu", "leaky_relu", "prelu" or "rrelu".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import are_counts, check, counts, probability
from .blocks import conv_bn_act, init_fan_out_, shortcut

__all__ = ["ASPP", "HDCStage", "MultiRate", "UpsampleHead"]


class ASPP(nn.Module):
    """y = project(cat(conv1x1(x), conv3x3(x; rate) for each rate, pool(x))): atrous spatial pyramid pooling.

    Each of them is a convolution with BatchNorm and activation. pool: global average, 1x1 convolution, and one value a
    channel for all positions (an upsampled 1x1 map). project is a 1x1 convolution, then dropout.

    x: (N, in_channels, H, W). Returns (N, channels, H, W).
    rates: dilations of the 3x3 branches: (6, 12, 18) at output stride 16, (12, 24, 36) at 8. A rate of H or more reads
        the padding alone, but for the middle weight.

    The names of state_dict are those of torchvision's ASPP. In training the pooled branch normalizes over N values: as
    in torchvision, N = 1 raises torch's ValueError.

    Raises ValueError for other arguments.
    Source: Chen et al., Rethinking atrous convolution (arXiv:1706.05587), section 3.3.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        act: str = "relu",
        dropout: float = 0.5,
    ):
        super().__init__()
        counts(in_channels=in_channels, channels=channels)
        _check_rates("rates", rates)
        probability("dropout", dropout)
        self.in_channels, self.out_channels = in_channels, channels
        pool = [nn.AdaptiveAvgPool2d(1), *conv_bn_act(in_channels, channels, 1, act=act)]
        branches = [conv_bn_act(in_channels, channels, dilation=rate, act=act) for rate in rates]
        layers = [conv_bn_act(in_channels, channels, 1, act=act), *branches, pool]
        self.convs = nn.ModuleList(nn.Sequential(*branch) for branch in layers)
        projection = conv_bn_act(len(layers) * channels, channels, 1, act=act)
        self.project = nn.Sequential(*projection, nn.Dropout(dropout))
        init_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        branches = [conv(x) for conv in self.convs]
        branches[-1] = F.interpolate(branches[-1], x.shape[-2:])  # keeps the layout, as expand() would not
        return self.project(torch.cat(branches, 1))


class HDCStage(nn.Module):
    """y = act(bn(conv(layers(x))) + identity(x)): hybrid dilated convolution.

    layers: a 3x3 convolution with BatchNorm and activation for each rate but the last, which is that of conv. Rates
        without a common factor leave no gaps in what an output reads: (1, 2, 5), not (2, 4, 8).

    x: (N, in_channels, H, W). Returns (N, channels, H, W).
    residual: adds x before the last activation, through a 1x1 convolution with BatchNorm if channels differ.

    Raises ValueError for other arguments.
    Source: Wang et al., Understanding convolution for semantic segmentation (arXiv:1702.08502), section 3.2.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: Sequence[int] = (1, 2, 5),
        act: str = "relu",
        residual: bool = True,
    ):
        super().__init__()
        counts(in_channels=in_channels, channels=channels)
        _check_rates("rates", rates)
        self.in_channels, self.out_channels, self.residual = in_channels, channels, residual
        *layers, self.act = _chain(in_channels, channels, rates, act)
        self.layers = nn.Sequential(*layers)
        self.downsample = shortcut(in_channels, channels, 1) if residual else None
        init_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        if self.residual:
            out += x if self.downsample is None else self.downsample(x)
        return self.act(out)


class MultiRate(nn.Module):
    """y = merge(cat(branch(x) for each branch)): small objects in one branch, long range in another.

    A branch is a chain of 3x3 convolutions with BatchNorm and activation, whose dilations are its entry of `branches`:
    (1, 1) sees every pixel of a small object, (2, 5) the surroundings of a large one. merge is a 1x1 convolution with
    BatchNorm and activation.

    x: (N, in_channels, H, W). Returns (N, channels, H, W); every branch has `channels` channels.

    Raises ValueError for other arguments.
    Source: parallel branches merged by a 1x1 convolution as in ASPP (arXiv:1706.05587), chains of rates as in HDC
    (arXiv:1702.08502).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        branches: Sequence[Sequence[int]] = ((1, 1), (2, 5)),
        act: str = "relu",
    ):
        super().__init__()
        counts(in_channels=in_channels, channels=channels)
        valid = isinstance(branches, (tuple, list)) and len(branches) > 0 and all(map(are_counts, branches))
        check("branches", valid, "a sequence of positive ints for each branch", branches)
        self.in_channels, self.out_channels = in_channels, channels
        self.branches = nn.ModuleList(nn.Sequential(*_chain(in_channels, channels, rates, act)) for rates in branches)
        self.merge = nn.Sequential(*conv_bn_act(len(branches) * channels, channels, 1, act=act))
        init_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([branch(x) for branch in self.branches], 1))


class UpsampleHead(nn.Module):
    """y = upsample(classifier(act(bn(conv(x))))): a 3x3 convolution, a 1x1 convolution to classes, bilinear upsampling.

    x: (N, in_channels, H, W).
    size: the (height, width) of the scores, by default those of x; align_corners=False.
    dropout: its probability before the classifier.

    Returns (N, num_classes, *size).

    Raises ValueError for other arguments.
    Source: the form of torchvision's FCNHead (models/segmentation/fcn.py), and of the end of DeepLabHead.
    """

    def __init__(
        self, in_channels: int, num_classes: int, channels: int = 256, act: str = "relu", dropout: float = 0.0
    ):
        super().__init__()
        counts(in_channels=in_channels, num_classes=num_classes, channels=channels)
        probability("dropout", dropout)
        self.in_channels, self.out_channels = in_channels, num_classes
        self.layers = nn.Sequential(*conv_bn_act(in_channels, channels, act=act))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        init_fan_out_(self.layers)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        scores = self.classifier(self.dropout(self.layers(x)))
        return scores if size is None else F.interpolate(scores, size, mode="bilinear", align_corners=False)


def _chain(in_channels: int, channels: int, rates: Sequence[int], act: str) -> list[nn.Module]:
    """Returns the modules of 3x3 convolutions with these dilations, each with BatchNorm and activation."""
    inputs = [in_channels] + [channels] * (len(rates) - 1)
    layers = (conv_bn_act(size, channels, dilation=rate, act=act) for size, rate in zip(inputs, rates))
    return [module for layer in layers for module in layer]


def _check_rates(name: str, rates: object) -> None:
    check(name, are_counts(rates), "positive ints", rates)
