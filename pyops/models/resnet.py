"""ResNet34 and its dilated variants in plain torch, without operators of this package.

The modules have torchvision's names, so its checkpoints load. torchvision shares activation modules; here all 33 are
separate (act1 of the stem, act1 and act2 of each block), so that each PReLU learns its own slopes.

Sources: He et al., Deep residual learning (arXiv:1512.03385); PReLU and its initialization, He et al.
(arXiv:1502.01852); dilated stages, Yu et al., Dilated residual networks (arXiv:1705.09914); multi_grid, Chen et al.,
Rethinking atrous convolution (arXiv:1706.05587).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..core import activation

FIRST_DILATIONS = ("previous", "new")
Plan = list[tuple[int, tuple[int, int]]]  # for each block of a stage: stride, dilations of its two convolutions


class BasicBlock(nn.Module):
    """y = act2(bn2(conv2(act1(bn1(conv1(x))))) + identity(x)), identity a 1x1 convolution where the shape changes.

    x: (N, in_channels, H, W). Returns (N, channels, ceil(H / stride), ceil(W / stride)): padding equals dilation.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, dilations: tuple[int, int] = (1, 1), act: str = "relu"
    ):
        super().__init__()
        first, second = dilations
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=first, dilation=first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation.make(act, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=second, dilation=second, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = activation.make(act, channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.act2(out)


class ResNet(nn.Module):
    """A ResNet with `blocks` BasicBlocks in its four stages; the other arguments are those of resnet34."""

    def __init__(
        self,
        blocks: Sequence[int] = (3, 4, 6, 3),
        num_classes: int = 1000,
        act: str = "relu",
        output_stride: int = 32,
        multi_grid: Sequence[int] | None = None,
        in_channels: int = 3,
        features_only: bool = False,
        dropout: float = 0.0,
        first_dilation: str = "previous",
    ):
        super().__init__()
        _check("num_classes", _is_count(num_classes), "a positive int", num_classes)
        _check("in_channels", _is_count(in_channels), "a positive int", in_channels)
        _check("dropout", isinstance(dropout, (int, float)) and 0 <= dropout <= 1, "a number from 0 to 1", dropout)
        self.features_only = features_only
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = activation.make(act, 64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = plan(blocks, output_stride, multi_grid, first_dilation)
        self.layer1 = _stage(64, 64, stages[0], act)
        self.layer2 = _stage(64, 128, stages[1], act)
        self.layer3 = _stage(128, 256, stages[2], act)
        self.layer4 = _stage(256, 512, stages[3], act)
        if not features_only:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.dropout = nn.Dropout(dropout)
            self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.act1(self.bn1(self.conv1(x)))
        features = [x] if self.features_only else []  # only on request: a list would keep them alive
        x = self.maxpool(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            if self.features_only:
                features.append(x)
        if self.features_only:
            return features
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))


def resnet34(
    num_classes: int = 1000,
    act: str = "relu",
    output_stride: int = 32,
    multi_grid: Sequence[int] | None = None,
    in_channels: int = 3,
    features_only: bool = False,
    dropout: float = 0.0,
    first_dilation: str = "previous",
) -> ResNet:
    """ResNet34: 3, 4, 6 and 3 blocks of 64, 128, 256 and 512 channels; 21,797,672 parameters with ReLU.

    x: (N, in_channels, H, W), any floating type. The model returns (N, num_classes), or with features_only
    [C1, ..., C5]: C1 the stem before its pool (stride 2), C2 to C5 the stages (stride 4 to output_stride). A model
    with features_only has no classifier.

    act: a name of activation.ACTIVATIONS; each PReLU has a slope for each channel.
    output_stride: 8, 16 or 32. A stage that would pass it keeps its resolution and doubles the dilation instead.
    multi_grid: a multiplier of the last stage's dilation for each of its 3 blocks, (1, 2, 4) for example.
    first_dilation: the dilation of the first convolution in each stage that is dilated instead of strided.
        "previous": that of the previous stage. This convolution is the one whose stride is replaced, so it still reads
            the grid of the previous stage. At the positions that output_stride=32 computes, the features are exactly
            those of that model, and its weights can be used unchanged. torchvision's replace_stride_with_dilation
            builds its bottlenecks like this (models/resnet.py, previous_dilation; its BasicBlock refuses dilation), as
            does timm's BasicBlock (first_dilation). multi_grid does not change this convolution.
        "new": that of its own stage, times multi_grid, as in DRN (fyu/drn, drn.py: layers 5 and 6 have new_level=False)
            and DeepLab (arXiv:1706.05587, section 3; detectron2's projects/DeepLab).
    dropout: probability of the dropout before the classifier.

    Raises ValueError for any other value.
    Source: He et al., arXiv:1512.03385; torchvision's names and initialization (Kaiming normal, fan_out).
    """
    return ResNet(
        (3, 4, 6, 3), num_classes, act, output_stride, multi_grid, in_channels, features_only, dropout, first_dilation
    )


def plan(
    blocks: Sequence[int], output_stride: int, multi_grid: Sequence[int] | None, first_dilation: str
) -> list[Plan]:
    """Returns stride and dilations of every block of the four stages, by the rules in resnet34's docstring."""
    _check("output_stride", output_stride in (8, 16, 32), "8, 16 or 32", output_stride)
    _check("first_dilation", first_dilation in FIRST_DILATIONS, "'previous' or 'new'", first_dilation)
    last = blocks[-1]
    grid = (1,) * last if multi_grid is None else multi_grid
    valid = isinstance(grid, (tuple, list)) and len(grid) == last and all(map(_is_count, grid))
    _check("multi_grid", valid, f"None or {last} positive ints, one for each block of the last stage", multi_grid)

    stages, reached, dilation = [], 4, 1  # the stem's convolution and pool together have stride 4
    for index, count in enumerate(blocks):
        previous, stride = dilation, 1
        if index > 0 and reached < output_stride:
            stride, reached = 2, reached * 2
        elif index > 0:
            dilation *= 2
        rates = [dilation * factor for factor in (grid if index == len(blocks) - 1 else (1,) * count)]
        first = previous if first_dilation == "previous" else rates[0]
        stages.append([(stride, (first, rates[0])), *((1, (rate, rate)) for rate in rates[1:])])
    return stages


def _stage(in_channels: int, channels: int, blocks: Plan, act: str) -> nn.Sequential:
    inputs = [in_channels] + [channels] * (len(blocks) - 1)
    return nn.Sequential(
        *(BasicBlock(size, channels, stride, dilations, act) for size, (stride, dilations) in zip(inputs, blocks))
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check(name: str, valid: bool, expected: str, got: object) -> None:
    if not valid:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
