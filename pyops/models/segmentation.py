"""A backbone, a head and a classifier of pixels as one module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .arguments import are_counts, check
from .heads import UpsampleHead


class Segmenter(nn.Module):
    """y = classifier(head(backbone(x)[-1]), size of x); made by segmenter."""

    def __init__(self, backbone: nn.Module, head: nn.Module, classifier: UpsampleHead):
        super().__init__()
        self.backbone, self.head, self.classifier = backbone, head, classifier

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(self.backbone(x)[-1])
        return self.classifier(features, x.shape[-2:])


def segmenter(backbone: nn.Module, head: nn.Module | None, num_classes: int, act: str = "relu") -> Segmenter:
    """Returns a module that maps images (N, C, H, W) to scores (N, num_classes, H, W): backbone, head, UpsampleHead.

    backbone: returns a list of feature maps, the last of backbone.channels[-1] channels: a model of this package with
        features_only, or one of your own with this attribute.
    head: a module from the last feature map to head.out_channels channels of its size: one of atrous.models.heads, or
        your own. None: the UpsampleHead reads the backbone.
    act: the activation of the UpsampleHead.

    Raises ValueError for any other value.
    Source: DeepLabv3 (arXiv:1706.05587), where the head is ASPP.
    """
    whole = not getattr(backbone, "features_only", True)  # a classifier
    channels: Any = getattr(backbone, "channels", None)
    expected = "a model with features_only=True and the attribute channels"
    check("backbone", are_counts(channels) and not whole, expected, type(backbone).__name__)
    if head is None:
        return Segmenter(backbone, nn.Identity(), UpsampleHead(channels[-1], num_classes, act=act))
    out_channels: Any = getattr(head, "out_channels", None)
    check("head", are_counts([out_channels]), "None or a module with the attribute out_channels", type(head).__name__)
    wanted = getattr(head, "in_channels", channels[-1])
    check("head", wanted == channels[-1], f"a module with in_channels={channels[-1]}, those of the backbone", wanted)
    return Segmenter(backbone, head, UpsampleHead(out_channels, num_classes, act=act))
