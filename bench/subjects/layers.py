"""A layer of ResNet34 as a subject: frozen, beside oneDNN's convolution alone and the processor's fastest product."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn

import atrous
from atrous.core.torch_compat import onednn_convolution, onednn_pack
from bench import ceilings
from bench.tables.layers import FusedLayer

from .networks import RATIO
from .subject import NHWC, OURS, Call, Subject, Unavailable

PRODUCT, ALONE = "fastest product", "oneDNN, conv alone"
COPIES = 4  # layers in a call, each with its own weight: they divide its host time, and no weight stays in L2


class Layers(nn.Module):
    """y_i = act(bn(conv_i(x)) + r) for COPIES layers that are equal but for their values; r and act may be missing."""

    def __init__(self, layer: FusedLayer) -> None:
        super().__init__()
        channels, (stride, padding, dilation) = layer.out_channels, layer.geometry
        options = {"stride": stride, "padding": padding, "dilation": dilation, "bias": False}
        sizes = (layer.in_channels, channels, layer.kernel)
        self.convs = nn.ModuleList(nn.Conv2d(*sizes, **options) for _ in range(COPIES))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(COPIES))
        self.acts = nn.ModuleList(nn.PReLU(channels) if layer.act else nn.Identity() for _ in range(COPIES))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> list[Tensor]:
        outputs = [norm(conv(x)) for conv, norm in zip(self.convs, self.norms)]
        sums = [y if residual is None else y + residual for y in outputs]
        return [act(y) for act, y in zip(self.acts, sums)]


def layer(layer: FusedLayer, batch: int, dtype: torch.dtype) -> Subject:
    """The baseline is bench.ceilings' fastest product, so that its speed in the same rounds is the measure.

    The result that is checked is the first copy's. A call takes COPIES times as long as a layer, or as a product.
    """
    model = Layers(layer).eval()
    shapes = [(batch, layer.in_channels, *(layer.size,) * 2)]
    shapes += [(batch, layer.out_channels, *(layer.out_size,) * 2)] * layer.residual
    tensors = [torch.randn(shape) for shape in shapes]
    exact = copy.deepcopy(model).double()(*(value.double() for value in tensors))[0]
    model = model.to(dtype).to(memory_format=NHWC)  # type: ignore[call-overload]
    arguments = [value.to(dtype, memory_format=NHWC) for value in tensors]

    def ours() -> Call:
        fused = atrous.fuse(model, freeze=True)
        return lambda: fused(*arguments)[0]

    product = ceilings.fastest(dtype)[0]
    providers = {
        PRODUCT: lambda: lambda: [product() for _ in range(COPIES)][0],
        ALONE: functools.partial(_onednn, model, arguments[0]),
        f"{OURS} frozen": ours,
    }
    return Subject(dtype, providers, lambda: model(*arguments)[0], exact, RATIO, unchecked=(PRODUCT, ALONE))


def _onednn(model: Layers, x: Tensor) -> Call:
    if onednn_convolution is None:
        raise Unavailable("torch was built without oneDNN")
    weights = [conv.weight.detach() for conv in model.convs]
    conv = model.convs[0]
    geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), 1)
    packed = [onednn_pack(weight, *geometry, list(x.shape)) for weight in weights]
    return lambda: [onednn_convolution(x, weight, None, *geometry, "none", [], "") for weight in packed][0]


def moved_bytes(layer: FusedLayer, batch: int, dtype: torch.dtype) -> int:
    """The least traffic: x, w, y and the residual once each."""
    read = layer.size if layer.kernel > 1 else layer.out_size  # a strided 1x1 convolution skips pixels
    pixels = layer.out_size**2 * layer.out_channels * batch
    inputs = layer.in_channels * (read**2 * batch + layer.kernel**2 * layer.out_channels)
    return (inputs + pixels * (2 if layer.residual else 1)) * dtype.itemsize
