"""Models in plain torch, to be made fast by atrous.fuse(model); the plain model is the reference for the fused one."""

from . import heads
from .blocks import BasicBlock, Bottleneck
from .dilate import dilate_
from .drn import DRN, drn_c_26, drn_d_22
from .prelu_net import prelu_net14
from .resnet import ResNet, resnet18, resnet34, resnet50
from .segmentation import segmenter
from .weights import load_weights, read_weights

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "DRN",
    "ResNet",
    "dilate_",
    "drn_c_26",
    "drn_d_22",
    "heads",
    "load_weights",
    "prelu_net14",
    "read_weights",
    "resnet18",
    "resnet34",
    "resnet50",
    "segmenter",
]
