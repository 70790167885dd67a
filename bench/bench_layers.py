"""Benchmark each layer of ResNet34 beside oneDNN's convolution alone: where the time of the network goes."""

import pytest
import torch

from bench import ceilings
from bench.subjects import layers, subject
from bench.tables.layers import fusable_layers


def name(layer) -> str:
    """As "layer2 3x3/2 64>128 x1": stage, kernel, stride, channels, residual, number in the network."""
    stride, residual = "/2" * (layer.stride == 2), " +r" * layer.residual
    stage, size = layer.name.partition(".")[0], f"{layer.kernel}x{layer.kernel}{stride}"
    return f"{stage} {size} {layer.in_channels}>{layer.out_channels}{residual} x{layer.count}"


@pytest.mark.parametrize("dtype", subject.dtypes(), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("layer", fusable_layers(), ids=lambda layer: layer.name)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the ceilings and the peer are a CPU's")
def test_layer(layer, batch, dtype, compare, machine_ceilings):
    sizes = {"macs": layer.flop(batch) // 2, "moved_bytes": layers.moved_bytes(layer, batch, dtype)}
    more = {"batch": batch, "count": layer.count, "product_macs": ceilings.fastest(dtype)[1], **sizes}
    compare("layers", name(layer), [layers.layer(layer, batch, dtype)], seconds=0.7, copies=layers.COPIES, **more)
