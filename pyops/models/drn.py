"""Dilated residual networks, variants C and D, which remove the gridding artifacts of ResNets with dilation.

DRN-A-34 is resnet34(output_stride=8, first_dilation="new"). The modules have the names of fyu/drn, so its checkpoints
load.

Source: Yu, Koltun and Funkhouser, Dilated residual networks (arXiv:1705.09914); fyu/drn, drn.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from torch import Tensor, nn
from typing_extensions import TypedDict, Unpack

from .arguments import are_counts, check, counts, known, probability
from .blocks import BasicBlock, conv_bn_act, init_fan_out_

CHANNELS = (16, 32, 64, 128, 256, 512, 512, 512)
STRIDES = (1, 2, 2, 2, 1, 1, 1, 1)
DILATIONS = (1, 1, 1, 1, 2, 4, 2, 1)  # the last two fall, which smooths what dilation 4 leaves
PLAIN = (0, 1, 6, 7)  # stages without residual blocks: all four of variant D, the last two of variant C


class Options(TypedDict, total=False):
    """The arguments of DRN that drn_c_26 and drn_d_22 pass on."""

    act: str
    in_channels: int
    features_only: bool
    dropout: float


class DRN(nn.Module):
    """A dilated residual network: a 7x7 convolution of stride 1, and eight stages, of output stride 8 and no pool.

    Channels 16, 32, 64, 128, 256, 512, 512, 512; strides 1, 2, 4, 8, 8, 8, 8, 8; dilations 1, 1, 1, 1, 2, 4, 2, 1.

    x: (N, in_channels, H, W), any floating type. The model returns (N, num_classes), or with features_only the maps of
    the eight stages; it then has no classifier. The attributes `channels` and `strides` are those of the stages.

    variant: "C" has residual blocks in all stages, the last two without their sums. "D" has 3x3 convolutions with
        BatchNorm and activation in the first two and the last two stages instead.
    blocks: the number of blocks or convolutions of each stage.
    act: "identity", "relu", "leaky_relu", "prelu" (a slope for each channel) or "rrelu".
    dropout: probability of the dropout before the classifier, which is a 1x1 convolution.

    Raises ValueError for any other value.
    Source: Yu et al., arXiv:1705.09914; names and initialization (Kaiming normal, fan_out) of fyu/drn.
    """

    def __init__(
        self,
        variant: str,
        blocks: Sequence[int],
        num_classes: int = 1000,
        act: str = "relu",
        in_channels: int = 3,
        features_only: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        check("variant", variant in ("C", "D"), "'C' or 'D'", variant)
        check("blocks", are_counts(blocks) and len(blocks) == len(CHANNELS), f"{len(CHANNELS)} positive ints", blocks)
        counts(num_classes=num_classes, in_channels=in_channels)
        probability("dropout", dropout)
        self.variant, self.features_only = variant, features_only
        self.channels, self.strides = CHANNELS, tuple(accumulate(STRIDES, mul))
        stem = conv_bn_act(in_channels, CHANNELS[0], 7, act=act)
        if variant == "C":
            self.conv1, self.bn1, self.act1 = stem
        else:
            self.layer0 = nn.Sequential(*stem)
        for index, count in enumerate(blocks):
            make = _convolutions if variant == "D" and index in PLAIN else _residual_blocks
            self.add_module(f"layer{index + 1}", make(index, count, act))
        if not features_only:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.dropout = nn.Dropout(dropout)
            self.fc = nn.Conv2d(CHANNELS[-1], num_classes, 1)
        init_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.act1(self.bn1(self.conv1(x))) if self.variant == "C" else self.layer0(x)
        features = []
        for index in range(len(CHANNELS)):
            x = self.get_submodule(f"layer{index + 1}")(x)
            if self.features_only:
                features.append(x)
        if self.features_only:
            return features
        return self.fc(self.dropout(self.avgpool(x))).flatten(1)


def drn_c_26(num_classes: int = 1000, **options: Unpack[Options]) -> DRN:
    """DRN-C-26: 21,126,584 parameters with ReLU. The options are those of DRN."""
    known("drn_c_26", options, Options.__annotations__)
    return DRN("C", (1, 1, 2, 2, 2, 2, 1, 1), num_classes, **options)


def drn_d_22(num_classes: int = 1000, **options: Unpack[Options]) -> DRN:
    """DRN-D-22: 16,393,752 parameters with ReLU. The options are those of DRN."""
    known("drn_d_22", options, Options.__annotations__)
    return DRN("D", (1, 1, 2, 2, 2, 2, 1, 1), num_classes, **options)


def _inputs(index: int, count: int) -> list[int]:
    return [CHANNELS[max(index - 1, 0)]] + [CHANNELS[index]] * (count - 1)


def _residual_blocks(index: int, count: int, act: str) -> nn.Sequential:
    """Returns a stage of BasicBlocks; both convolutions of the first have the stage's dilation."""
    dilations = (DILATIONS[index],) * 2
    strides = [STRIDES[index]] + [1] * (count - 1)
    blocks = (
        BasicBlock(inputs, CHANNELS[index], stride, dilations, act, residual=index < 6)
        for inputs, stride in zip(_inputs(index, count), strides)
    )
    return nn.Sequential(*blocks)


def _convolutions(index: int, count: int, act: str) -> nn.Sequential:
    """Returns a stage of convolutions with BatchNorm and activation, in one nn.Sequential."""
    strides = [STRIDES[index]] + [1] * (count - 1)
    layers = (
        conv_bn_act(inputs, CHANNELS[index], 3, stride, DILATIONS[index], act)
        for inputs, stride in zip(_inputs(index, count), strides)
    )
    return nn.Sequential(*(module for layer in layers for module in layer))
