"""The convolutions and poolings of an audited network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from . import operators
from .graph import ModelGraph, module_name
from .operators import Axes, Pair, Window, convolution_macs
from .taps import inside


@dataclass(frozen=True)
class Layer:
    """A convolution or pooling. Pairs are (height, width).

    rate: the dilation. input_size: that of the layer's input, None for a list of rates without an input size.
    padding_share: the fraction of its taps, over all output positions, that read its own zero padding; None without
        input_size. Padding by an operator of its own, as for padding_mode="circular", is a part of the input.
    gmac: its multiply-adds for one image, in units of 10**9; 0 for a pooling, None for a list of rates.
    """

    name: str
    operator: str
    kernel_size: Pair
    stride: Pair
    rate: Pair
    input_size: Pair | None
    padding_share: float | None
    gmac: float | None


def of_rate(name: str, window: Window, input_size: Pair | None) -> Layer:
    """A layer of a list of rates, whose output has the size of its input."""
    padding = None if input_size is None else _in_padding(window.axes(), input_size, input_size)
    return Layer(name, "conv2d", window.kernel, window.stride, window.dilation, input_size, padding, None)


def of_node(graph: ModelGraph, node: fx.Node) -> Layer | None:
    """The layer of a node that is a map; None if it is no convolution or pooling with a kernel size."""
    window, (source, axes) = operators.window(node), graph.reads[node][0]
    if window is None or axes is None:
        return None
    size, gmac = graph.size(source), convolution_macs(node) / 1e9
    padding, kind = _in_padding(axes, size, graph.size(node)), operators.name(node)
    return Layer(module_name(node), kind, window.kernel, window.stride, window.dilation, size, padding, gmac)


def _in_padding(axes: Axes, size: Pair, output: Pair) -> float:
    within = [inside(*one) for one in zip(axes, size, output)]
    return 1 - within[0] * within[1]
