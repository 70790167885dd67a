"""The network of a run: a ResNet of output stride 1 or 2 without dilation, an HDC stage, and one logit a pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atrous
from atrous.models import ResNet, heads, resnet18, resnet34

from .config import Config, RunError

LIMIT = 0.35  # the largest fraction of the head's taps that may read padding
BACKBONES = {"resnet18": resnet18, "resnet34": resnet34}


class VesselNet(nn.Module):
    """y = upsample(classifier(dropout(head(stages(x))))).

    x: (N, 1, H, W), prepared images. Returns logits (N, 1, H, W). Thin vessels do not survive an output stride above 2,
    so that the backbone ends behind its second stage, C3, or its first, C2.
    stride: that of the map that the head reads.
    """

    def __init__(self, backbone: ResNet, stages: int, head: heads.HDCStage, dropout: float):
        super().__init__()
        self.stride = backbone.strides[stages]
        self.conv1, self.bn1, self.act1 = backbone.conv1, backbone.bn1, backbone.act1
        self.stages = nn.Sequential(*(backbone.layer1, backbone.layer2)[:stages])
        self.head = head
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(head.out_channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stages(self.act1(self.bn1(self.conv1(x))))
        logits = self.classifier(self.dropout(self.head(features)))
        if self.stride == 1:
            return logits
        return F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)


def build(config: Config) -> VesselNet:
    """Returns the plain network in training mode, its weights drawn from config.seed, on the CPU.

    With PReLU the weights are those of the PReLU paper; otherwise Kaiming's of the ResNet.
    """
    torch.manual_seed(config.seed)
    backbone = BACKBONES[config.backbone](
        in_channels=1, act=config.act, width=config.width, stem_stride=1, features_only=True
    )
    channels = backbone.channels[config.stages]
    head = heads.HDCStage(channels, channels, config.rates, act=config.act)
    model = VesselNet(backbone, config.stages, head, config.dropout)
    if config.act == "prelu":
        atrous.nn.init_prelu_kaiming_(model)
    for module in model.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = config.slope
    return model.to(getattr(torch, config.dtype))


def padded_taps(config: Config) -> float:
    """Returns the fraction of the head's taps that read padding, as a mean over its layers, on a training patch."""
    layers = atrous.audit_dilation(config.rates, head_side(config)).layers
    return sum(layer.padding_share or 0.0 for layer in layers) / len(layers)


def head_side(config: Config) -> int:
    """Returns the side of the map that the head reads of a patch."""
    return -(-config.patch // 2 ** (config.stages - 1))


def check_rates(config: Config) -> None:
    """Raises RunError for rates that put more than LIMIT of the head's taps into padding."""
    side, fraction = head_side(config), padded_taps(config)
    if fraction > LIMIT:
        raise RunError(
            f"--rates {','.join(map(str, config.rates))}: {fraction:.1%} of the head's taps read padding on a map of "
            f"{side}x{side} (a patch of {config.patch}x{config.patch}); at most {LIMIT:.0%} are accepted"
        )
