"""Models in plain torch: each is its own oracle, and atrous.fuse(model) is what makes it fast."""

from .resnet import BasicBlock, ResNet, resnet34
from .weights import load_weights, read_weights

__all__ = ["BasicBlock", "ResNet", "load_weights", "read_weights", "resnet34"]
