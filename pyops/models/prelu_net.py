"""The small model of the PReLU paper: 14 layers with weights, each but the last with a PReLU, and no BatchNorm.

Source: He et al., Delving deep into rectifiers (arXiv:1502.01852), section 2.1 and table 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check, counts, probability
from .prelu_training import init_prelu_kaiming_

BINS = (6, 3, 2, 1)  # the pyramid has 6 x 6 + ... + 1 of them
HIDDEN = 4096


class PReLUNet14(nn.Module):
    """The network that prelu_net14 returns; its arguments are those of prelu_net14."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, channel_wise: bool = True, dropout: float = 0.5):
        super().__init__()
        counts(num_classes=num_classes, in_channels=in_channels)
        check("channel_wise", isinstance(channel_wise, bool), "a bool", channel_wise)
        probability("dropout", dropout)
        self.conv1, self.prelu1 = nn.Conv2d(in_channels, 64, 7, 2), _prelu(64, channel_wise)
        self.pool1 = nn.MaxPool2d(3, 3)
        self.conv2 = _stage(64, 128, 4, channel_wise)
        self.pool2 = nn.MaxPool2d(2, 2)
        self.conv3 = _stage(128, 256, 6, channel_wise)
        self.fc1, self.prelu4 = nn.Linear(256 * sum(bins * bins for bins in BINS), HIDDEN), _prelu(HIDDEN, channel_wise)
        self.fc2, self.prelu5 = nn.Linear(HIDDEN, HIDDEN), _prelu(HIDDEN, channel_wise)
        self.dropout = nn.Dropout(dropout)
        self.fc3 = nn.Linear(HIDDEN, num_classes)
        init_prelu_kaiming_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.conv3(self.pool2(self.conv2(x)))
        x = torch.cat([F.adaptive_max_pool2d(x, bins).flatten(1) for bins in BINS], 1)
        x = self.dropout(self.prelu4(self.fc1(x)))
        x = self.dropout(self.prelu5(self.fc2(x)))
        return self.fc3(x)


def prelu_net14(
    num_classes: int = 1000, in_channels: int = 3, channel_wise: bool = True, dropout: float = 0.5
) -> PReLUNet14:
    """The PReLU paper's small model: 11 convolutions, a spatial pyramid of max pools, and 3 fully connected layers.

    x: (N, in_channels, H, W), any floating type; H and W at least 17. Returns (N, num_classes).
    channel_wise: a slope for each channel (of fc1 and fc2: for each output); False: one for each layer.
    dropout: probability behind fc1 and fc2, in training.

    The layers, their map sizes for an input of 224, and the slopes that the paper's models learned on ImageNet,
    channel-shared and channel-wise (mean):

        conv1    7x7, 64, /2    109   0.681  0.596
        pool1    3x3, /3         36
        conv2_1  2x2, 128        37   0.103  0.321
        conv2_2  2x2, 128        36   0.099  0.204
        conv2_3  2x2, 128        37   0.228  0.294
        conv2_4  2x2, 128        36   0.561  0.464
        pool2    2x2, /2         18
        conv3_1  2x2, 256        19   0.126  0.196
        conv3_2  2x2, 256        18   0.089  0.152
        conv3_3  2x2, 256        19   0.124  0.145
        conv3_4  2x2, 256        18   0.062  0.124
        conv3_5  2x2, 256        19   0.008  0.134
        conv3_6  2x2, 256        18   0.210  0.198
        spp      6, 3, 2, 1
        fc1      4096                 0.063  0.074
        fc2      4096                 0.031  0.075
        fc3      1000

    Paddings are ours, as the paper has none: a 2x2 kernel has no center, so the convolutions of a stage pad 1 and 0 in
    turn, and each pair keeps size and place of the map. With conv1 and pool1 unpadded the sizes are 36 and 18, which
    pool2 and the pyramid's 6, 3, 2 and 1 bins divide.

    Raises ValueError for any other value.
    Source: He et al., arXiv:1502.01852, table 1; init_prelu_kaiming_ draws the weights.
    """
    return PReLUNet14(num_classes, in_channels, channel_wise, dropout)


def _stage(in_channels: int, channels: int, count: int, channel_wise: bool) -> nn.Sequential:
    """Returns 2x2 convolutions, which pad 1 and 0 in turn, each with its PReLU."""
    layers: list[nn.Module] = []
    for index in range(count):
        inputs = channels if index else in_channels
        layers += [nn.Conv2d(inputs, channels, 2, padding=1 - index % 2), _prelu(channels, channel_wise)]
    return nn.Sequential(*layers)


def _prelu(channels: int, channel_wise: bool) -> nn.PReLU:
    return nn.PReLU(channels if channel_wise else 1)
