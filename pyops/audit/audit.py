"""audit_dilation(): the field of a stack of rates or of a model, its holes, its padding, and rates without holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import rates
from .field import Field, check_side
from .graph import ModelGraph, module_name
from .layers import Layer, of_node, of_rate
from .operators import Pair, Window, convolution_macs
from .rates import Stack, Suggestion

EXACT = 2.0**53  # fp64 holds every whole number up to it


@dataclass(frozen=True)
class Audit:
    """The part of the input that one position of the last map reads, as if maps had no borders. Pairs: (height, width).

    receptive_field: the box of the positions that are read, in pixels of the input.
    positions: their number in that box.
    reached: the number of those that are read.
    coverage: reached / positions.
    holes: positions - reached.
    largest_hole: the side of the largest square of positions that are not read, in pixels.
    profile: (height, width) fp64, the number of paths to each position of the box: 0 in a hole, uneven on a grid.
    center: the output position's own place in the box, for a list of rates; for a model, the place of the pixel at the
        middle of the image.
    hdc: Wang's condition M_2 <= K for hybrid dilated convolution, of a list of rates of one kernel size; else None. It
        passes 2, 2, 2: whether there are holes is what coverage says.
    common_factor: the greatest common divisor of the rates of `stack`; None without it.
    input_size: that of the image, None for a list of rates without one.
    layers: every convolution and pooling of the list or on the model's maps.
    gmac: the multiply-adds of all convolutions for one image, in units of 10**9. None for a list of rates.
    global_branches: the global poolings before the last map, by module, which read everything and are in no field.
    stack: the rates of the list; of a model, those of the layers before the last map that have its resolution, stride 1
        and a kernel larger than 1, in the order in which they run. None without any, or if one is not square.
    suggestion: rates without holes for `stack`, if there are holes, and if its field is that of the whole model. That
        is so for a chain of layers, with residuals or without, and not behind strides or for parallel branches. Else
        None, as for more than 64 layers.
    """

    receptive_field: Pair
    positions: int
    reached: int
    coverage: float
    holes: int
    largest_hole: int
    profile: Tensor
    center: Pair
    hdc: bool | None
    common_factor: int | None
    input_size: Pair | None
    layers: list[Layer]
    gmac: float | None
    global_branches: list[str]
    stack: Stack | None
    suggestion: Suggestion | None

    def as_dict(self) -> dict:
        """The audit for JSON, with the same keys."""
        counts = [[int(n) if n < EXACT else n for n in line] for line in self.profile.tolist()]
        return {
            **vars(self), "profile": counts, "layers": [vars(layer) for layer in self.layers],
            "stack": self.stack and self.stack.as_dict(), "suggestion": self.suggestion and self.suggestion.as_dict(),
        }  # fmt: skip


def audit_dilation(
    model_or_rates: nn.Module | Sequence[int],
    input_size: int | Sequence[int] | None = None,
    kernel_sizes: int | Sequence[int] = 3,
) -> Audit:
    """Finds the positions of its input that a dilated network reads, how often, and rates that leave no holes.

        read(o) = {o * stride - padding + j * rate, 0 <= j < kernel} along each axis, layer after layer

    model_or_rates: the rates of convolutions one after the other, of stride 1 and padded to keep the size; or a model
        in plain torch, which runs once on zeros, in eval mode, and is traced by torch.export. Of a model, the field is
        that of the last map before global pooling, found in its graph: convolutions, poolings, residual additions,
        branches, upsampling. Of several outputs it is that of the largest field. Activations and normalizations count
        as reading one position, each tensor's channels are taken together, and maps as unbounded.
    input_size: the image's height and width, one number for both, or (C, H, W). For a model the default is 224, with
        the channels of its first convolution.
    kernel_sizes: of the rates, one or one for each; an even one reads one position more behind the middle than before.

    Raises TypeError, and ValueError: rates or sizes that are not positive integers, a field of more than 8192 pixels, a
    model without convolutions, an image that it does not accept, control flow that depends on values, and operators
    that mix height and width, as attention does.
    Sources: Wang et al., arXiv:1702.08502 (gridding, hdc); Yu et al., arXiv:1705.09914 (gridding in residual networks).
    """
    if isinstance(model_or_rates, nn.Module):
        return _audit_model(model_or_rates, _image_shape(model_or_rates, input_size))
    numbers = _positive("model_or_rates", model_or_rates)
    kernels = [kernel_sizes] * len(numbers) if hasattr(kernel_sizes, "__index__") else kernel_sizes
    kernels = _positive("kernel_sizes", kernels)
    if len(kernels) != len(numbers):
        raise ValueError(f"kernel_sizes: expected one, or one for each of {len(numbers)} rates, got {len(kernels)}")
    *_, height, width = (None, None) if input_size is None else _size(input_size)
    with torch.device("cpu"):
        return _audit_rates(Stack(numbers, kernels), (height, width) if height and width else None)


def _audit_rates(stack: Stack, input_size: Pair | None) -> Audit:
    check_side(stack.field)
    field, layers = Field.at((0, 0)), []
    for index, (rate, kernel) in enumerate(zip(stack.rates, stack.kernel_sizes), 1):
        side = Window((kernel, kernel), (1, 1), (rate * (kernel - 1) // 2,) * 2, (rate, rate))
        read = field.through(*side.axes())
        assert read is not None  # each layer reads something
        field = read
        layers.append(of_rate(f"layer {index}", side, input_size))
    return _audit(field, (0, 0), stack, input_size, layers, hdc=rates.hdc(stack))


def _audit_model(model: nn.Module, shape: tuple[int, ...]) -> Audit:
    tensors = [*model.parameters(), *model.buffers()]
    if any(map(is_lazy, tensors)):
        raise ValueError("model: expected initialized parameters, got lazy ones: call the model once before")
    if not any(tensor.dim() == 4 for tensor in tensors):
        raise ValueError(f"model: expected a model with convolutions, got {type(model).__name__} without one")
    graph = ModelGraph(model, shape)
    with torch.device("cpu"):
        return _audit_graph(graph, (shape[2], shape[3]))


def _audit_graph(graph: ModelGraph, size: Pair) -> Audit:
    read = {last: field for last in graph.last_maps() if (field := graph.field(last))}
    if not read:
        raise ValueError("model: expected outputs that depend on the image, got none that does")
    last = max(read, key=lambda node: read[node].counts.numel())
    layers = {node: layer for node in graph.nodes if node in graph.reads and (layer := of_node(graph, node))}
    before = graph.before(last)
    stack = _stack([layer for node, layer in layers.items() if node in before], graph.size(last))
    return _audit(
        read[last], (size[0] // 2, size[1] // 2), stack, size, list(layers.values()),
        gmac=sum(map(convolution_macs, graph.nodes)) / 1e9,
        global_branches=sorted({module_name(node) or str(node.target) for node in graph.pooled.get(last, ())}),
    )  # fmt: skip


def _audit(
    field: Field, position: Pair, stack: Stack | None, input_size: Pair | None, layers: list[Layer],
    hdc: bool | None = None, gmac: float | None = None, global_branches: Sequence[str] = (),
) -> Audit:  # fmt: skip
    positions, reached = field.counts.numel(), int((field.counts != 0).sum())
    alone = stack is not None and field.size == (stack.field, stack.field) and len(stack.rates) <= 64
    return Audit(
        field.size, positions, reached, reached / positions, positions - reached, field.largest_hole(), field.counts,
        (position[0] - field.origin[0], position[1] - field.origin[1]), hdc,
        math.gcd(*stack.rates) if stack else None, input_size, layers, gmac, list(global_branches), stack,
        rates.suggest(stack) if stack and alone and reached < positions else None,
    )  # fmt: skip


def _stack(layers: Sequence[Layer], size: Pair) -> Stack | None:
    """The rates of the layers of stride 1 on maps of this size; None without any, or if one is not square."""
    there = [
        layer for layer in layers
        if layer.input_size == size and layer.stride == (1, 1) and layer.kernel_size != (1, 1)
    ]  # fmt: skip
    if not there or any(len(set(pair)) > 1 for layer in there for pair in (layer.kernel_size, layer.rate)):
        return None
    return Stack(tuple(layer.rate[0] for layer in there), tuple(layer.kernel_size[0] for layer in there))


def _image_shape(model: nn.Module, input_size: object) -> tuple[int, ...]:
    size = (224, 224) if input_size is None else _size(input_size)
    first = next((module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))), None)
    channels = (3 if first is None else first.in_channels,) if len(size) == 2 else ()
    return (1, *channels, *size)


def _size(input_size: object) -> tuple[int, ...]:
    size = (input_size, input_size) if hasattr(input_size, "__index__") else input_size
    numbers = _positive("input_size", size)
    if len(numbers) not in (2, 3):
        raise ValueError(f"input_size: expected a number, (H, W) or (C, H, W), got {input_size!r}")
    return numbers


def _positive(name: str, values: object) -> tuple[int, ...]:
    """The values as ints. Raises unless they are a sequence of at least one positive integer."""
    expected = "a torch.nn.Module or positive integers" if name == "model_or_rates" else "positive integers"
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name}: expected {expected}, got {values!r}")
    whole = [hasattr(value, "__index__") and not isinstance(value, bool) and value > 0 for value in values]
    if not whole or not all(whole):
        raise ValueError(f"{name}: expected {expected}, got {values!r}")
    return tuple(int(value) for value in values)
