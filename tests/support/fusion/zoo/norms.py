"""BatchNorms of every kind, and normalizations that are none."""

import torch
import torch.nn.functional as F
from torch import nn

from .entry import cb, cbr, conv, entry


def layer(norm, act=None, **options):
    return nn.Sequential(conv(**options), norm, act or nn.ReLU(inplace=True))


@entry("5 conv+bn+relu")
def batch_norms():
    """Without affine parameters, with other numbers, with a convolution's bias, cumulative, and of no momentum."""
    norms = [dict(affine=False), dict(eps=1e-2, momentum=0.4), dict(), dict(momentum=0.0), dict(momentum=1.0)]
    return nn.Sequential(*(layer(nn.BatchNorm2d(4, **norm), bias=i == 2) for i, norm in enumerate(norms)))


@entry("2 conv+bn+relu", "")
def batch_norm_of_cumulative_average():
    """In training the momentum is read from a tensor, where Dynamo breaks the graph in each layer."""
    return nn.Sequential(layer(nn.BatchNorm2d(4, momentum=None)), layer(nn.BatchNorm2d(4, momentum=None)))


@entry("2 conv+bn+relu")
def batch_norm_without_statistics():
    """It normalizes by the batch in eval too."""
    norms = nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    return nn.Sequential(*map(layer, norms))


@entry("2 conv+bn+relu, conv+bn")
class FrozenStage(nn.Module):
    """detectron2 and mmdet: the BatchNorms of the first stage stay in eval while the rest trains."""

    def __init__(self):
        super().__init__()
        self.stage1, self.stage2, self.head = cbr(), cbr(), cb()
        self.stage1[0].weight.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.stage1[1].eval()
        return self

    def forward(self, x):
        return self.head(self.stage2(self.stage1(x)))


class FrozenBatchNorm(nn.Module):
    """torchvision's FrozenBatchNorm2d: a scale and a shift of buffers, which is no batch_norm."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x):
        w, b, rv, rm = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_var, self.running_mean))
        scale = w * (rv + 1e-5).rsqrt()
        return x * scale + (b - rm * scale)


@entry("conv+bn+relu | conv+bn+relu, add+relu", convs=2)
def frozen_batch_norm():
    return nn.Sequential(layer(FrozenBatchNorm(4)), cbr())


@entry("conv+bn+relu", convs=4)
def other_normalizations():
    """GroupNorm, InstanceNorm and LayerNorm over channels: their convolutions stay."""

    class ChannelNorm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    norms = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), ChannelNorm(4)
    return nn.Sequential(*map(layer, norms), cbr())


class StandardizedConv(nn.Conv2d):
    """timm's StdConv2d: F.batch_norm of the weight, as (1, out, in * h * w), makes the weight."""

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@entry("conv+bn+relu, conv+relu")
def standardized_weights():
    return nn.Sequential(StandardizedConv(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                         StandardizedConv(4, 4, 1), nn.ReLU())  # fmt: skip


@entry("2 conv+bn+relu", once=True)
class BatchNormOfEachDomain(nn.Module):
    """One convolution, and a BatchNorm for each of two inputs that are halves of the batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.norms, self.act = conv(), nn.ModuleList(nn.BatchNorm2d(4) for _ in "12"), nn.ReLU()

    def forward(self, x):
        return torch.cat([self.act(bn(self.conv(part))) for bn, part in zip(self.norms, x.chunk(2))])


@entry("3 bn+relu, bn+leaky_relu", shape=(3, 4, 6, 6))
class NormsWithoutConvolutions(nn.Module):
    """A BatchNorm behind a pool, a linear map over pixels, a transposed convolution and a sum of three."""

    def __init__(self):
        super().__init__()
        self.bn1, self.bn2, self.bn3, self.bn4 = (nn.BatchNorm2d(4) for _ in range(4))
        self.linear, self.up = nn.Linear(4, 4), nn.ConvTranspose2d(4, 4, 2, stride=2)

    def forward(self, x):
        x = F.relu(self.bn1(F.avg_pool2d(x, 3, 1, 1)))
        x = F.relu(self.bn2(self.linear(x.movedim(1, -1)).movedim(-1, 1)))
        y = F.leaky_relu(self.bn3(self.up(x)), 0.3)
        return F.relu(self.bn4(y + y.flip(3) + 1.0))
