"""ResNet18, 34 and 50 and their dilated variants in plain torch, without operators of this package.

The modules have torchvision's names, so its checkpoints load. torchvision shares activation modules; here all are
separate (act1 of the stem, act1 to act3 of each block), so that each PReLU learns its own slopes.

Sources: He et al., Deep residual learning (arXiv:1512.03385); PReLU and its initialization, He et al.
(arXiv:1502.01852); dilated stages, Yu et al., Dilated residual networks (arXiv:1705.09914); multi_grid, Chen et al.,
Rethinking atrous convolution (arXiv:1706.05587); hdc, Wang et al., Understanding convolution for semantic segmentation
(arXiv:1702.08502).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

from torch import Tensor, nn
from typing_extensions import TypedDict, Unpack

from ..core import activation
from .arguments import are_counts, check, counts, is_count, known, probability
from .blocks import BasicBlock, Bottleneck, init_fan_out_

FIRST_DILATIONS = ("previous", "new")
Plan = list[tuple[int, tuple[int, int]]]  # for each block of a stage: stride, its two dilations
Cycles = Sequence[int] | Sequence[Sequence[int]]


class Options(TypedDict, total=False):
    """The arguments of ResNet that resnet18, resnet34 and resnet50 pass on."""

    act: str
    output_stride: int | None
    multi_grid: Sequence[int] | None
    in_channels: int
    features_only: bool
    dropout: float
    first_dilation: str
    hdc: Cycles | None
    stem_stride: int
    width: int


class ResNet(nn.Module):
    """A ResNet of four stages: blocks[i] blocks of width 2^i channels, times 4 behind each Bottleneck.

    x: (N, in_channels, H, W), any floating type. The model returns (N, num_classes), or with features_only
    [C1, ..., C5]: C1 the stem before its pool, C2 to C5 the stages; it then has no classifier. The attributes
    `channels` and `strides` are those of C1 to C5.

    block: BasicBlock or Bottleneck.
    act: "identity", "relu", "leaky_relu", "prelu" (a slope for each channel) or "rrelu".
    stem_stride: the stride of C2, where the first stage works. Finer ones are for thin structures; the parameters are
        the same.
        4: conv1 has stride 2, and maxpool is 3x3 with stride 2.
        2: conv1 has stride 2, and maxpool is nn.Identity.
        1: conv1 has stride 1, and maxpool is nn.Identity.
    output_stride: the stride of C5: stem_stride times 1, 2, 4 or 8; None is 8 times. A stage that would pass it keeps
        its resolution and doubles the dilation instead.
    multi_grid: a multiplier of the last stage's dilation for each of its blocks, (1, 2, 4) for example; it dilates that
        stage also where output_stride leaves its stride.
    first_dilation: the dilation of the first 3x3 convolution in each stage that is dilated instead of strided.
        "previous": that of the previous stage. This convolution is the one whose stride is replaced, so it still reads
            the grid of the previous stage. At the positions that the strided model computes, the features are exactly
            those of that model, and its weights can be used unchanged. torchvision's replace_stride_with_dilation
            builds its bottlenecks like this (models/resnet.py, previous_dilation; its BasicBlock refuses dilation), as
            does timm's BasicBlock (first_dilation). multi_grid does not change this convolution.
        "new": that of its own stage, times multi_grid, as in DRN (fyu/drn, drn.py: layers 5 and 6 have new_level=False)
            and DeepLab (arXiv:1706.05587, section 3; detectron2's projects/DeepLab).
    hdc: hybrid dilated convolution: dilations that the blocks of a dilated stage take in turn, in place of a constant
        one, which would read the map through a grid with gaps. Block i has hdc[i % len(hdc)], as it is, in all of its
        3x3 convolutions, the stage's first included. (1, 2, 5) is for each dilated stage; ((1, 2, 5, 9), (5, 9, 17)),
        the paper's, has one cycle for each. It takes the place of multi_grid and first_dilation.
    dropout: probability of the dropout before the classifier.
    width: channels of the stem and base of the stages; torchvision's checkpoints need 64.

    Raises ValueError for any other value, for hdc where no stage is dilated, and for hdc with multi_grid.
    Source: He et al., arXiv:1512.03385; torchvision's names and initialization (Kaiming normal, fan_out).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        num_classes: int = 1000,
        act: str = "relu",
        output_stride: int | None = None,
        multi_grid: Sequence[int] | None = None,
        in_channels: int = 3,
        features_only: bool = False,
        dropout: float = 0.0,
        first_dilation: str = "previous",
        hdc: Cycles | None = None,
        stem_stride: int = 4,
        width: int = 64,
    ):
        super().__init__()
        counts(num_classes=num_classes, in_channels=in_channels, width=width)
        probability("dropout", dropout)
        stages = plan(blocks, output_stride, multi_grid, first_dilation, hdc, stem_stride)
        self.features_only = features_only
        stem = min(stem_stride, 2)
        self.conv1 = nn.Conv2d(in_channels, width, 7, stem, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = activation.make(act, width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem_stride == 4 else nn.Identity()
        self.channels = (width, *(width * 2**index * block.expansion for index in range(4)))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(block, self.channels[index], width * 2**index, stage, act) for index, stage in enumerate(stages)
        )
        strides = accumulate((stage[0][0] for stage in stages), mul, initial=stem_stride)
        self.strides = (stem, *tuple(strides)[1:])
        if not features_only:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.dropout = nn.Dropout(dropout)
            self.fc = nn.Linear(self.channels[-1], num_classes)
        init_fan_out_(self)

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


def resnet18(num_classes: int = 1000, **options: Unpack[Options]) -> ResNet:
    """ResNet18: 2 BasicBlocks in each stage; 11,689,512 parameters with ReLU. The options are those of ResNet."""
    known("resnet18", options, Options.__annotations__)
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, **options)


def resnet34(num_classes: int = 1000, **options: Unpack[Options]) -> ResNet:
    """ResNet34: 3, 4, 6 and 3 BasicBlocks; 21,797,672 parameters with ReLU. The options are those of ResNet."""
    known("resnet34", options, Options.__annotations__)
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, **options)


def resnet50(num_classes: int = 1000, **options: Unpack[Options]) -> ResNet:
    """ResNet50: 3, 4, 6 and 3 Bottlenecks; 25,557,032 parameters with ReLU. The options are those of ResNet."""
    known("resnet50", options, Options.__annotations__)
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, **options)


def plan(
    blocks: Sequence[int],
    output_stride: int | None,
    multi_grid: Sequence[int] | None,
    first_dilation: str,
    hdc: Cycles | None,
    stem_stride: int,
) -> list[Plan]:
    """Returns stride and dilations of every block of the four stages, by the rules in ResNet's docstring."""
    check("blocks", are_counts(blocks) and len(blocks) == 4, "4 positive ints", blocks)
    check("stem_stride", is_count(stem_stride) and stem_stride in (1, 2, 4), "1, 2 or 4", stem_stride)
    check("first_dilation", first_dilation in FIRST_DILATIONS, "'previous' or 'new'", first_dilation)
    strides = [stem_stride * 2**index for index in range(4)]  # if nothing is dilated
    last = strides[-1] if output_stride is None else output_stride
    allowed = f"None, {', '.join(map(str, strides[:-1]))} or {strides[-1]} with stem_stride={stem_stride}"
    check("output_stride", is_count(last) and last in strides, allowed, last)
    grid = (1,) * blocks[3] if multi_grid is None else multi_grid
    expected = f"None or {blocks[3]} positive ints, one for each block of the last stage"
    check("multi_grid", are_counts(grid) and len(grid) == blocks[3], expected, multi_grid)

    cycles = _cycles(hdc, sum(stride > last for stride in strides), multi_grid)
    stages, dilation = [], 1
    for index, count in enumerate(blocks):
        previous, dilation = dilation, max(1, strides[index] // last)
        rates = [dilation * factor for factor in (grid if index == 3 else (1,) * count)]
        first = previous if first_dilation == "previous" else rates[0]
        if cycles and strides[index] > last:
            cycle = cycles.pop(0)
            rates = [cycle[block % len(cycle)] for block in range(count)]
            first = rates[0]
        stride = 2 if index > 0 and strides[index] <= last else 1
        stages.append([(stride, (first, rates[0])), *((1, (rate, rate)) for rate in rates[1:])])
    return stages


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, blocks: Plan, act: str
) -> nn.Sequential:
    inputs = [in_channels] + [channels * block.expansion] * (len(blocks) - 1)
    return nn.Sequential(
        *(block(size, channels, stride, dilations, act) for size, (stride, dilations) in zip(inputs, blocks))
    )


def _cycles(hdc: Cycles | None, stages: int, multi_grid: Sequence[int] | None) -> list[Sequence[int]]:
    """Returns the dilations of hdc, one cycle for each dilated stage; [] without hdc."""
    if hdc is None:
        return []
    check("hdc", stages > 0, "None, since output_stride leaves no stage to dilate", hdc)
    check("multi_grid", multi_grid is None, "None with hdc, which has all dilations", multi_grid)
    cycles: Any = [hdc] * stages if are_counts(hdc) else hdc
    valid = isinstance(cycles, (tuple, list)) and len(cycles) == stages and all(map(are_counts, cycles))
    check("hdc", valid, f"None, positive ints, or {stages} sequences of them, one for each dilated stage", hdc)
    return list(cycles)
