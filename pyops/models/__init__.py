"""Models in plain torch, to be made fast by atrous.fuse(model); the plain model is the reference for the fused one."""

from .resnet import BasicBlock, ResNet, resnet34
from .weights import load_weights, read_weights

__all__ = ["BasicBlock", "ResNet", "load_weights", "read_weights", "resnet34"]
