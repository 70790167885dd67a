"""What a convolution is to its kernels: checked tensors in one layout, its key, and the operands of a launch."""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import configs
from .configs import DTYPES, Conv, ConvKey, Pair, precision
from .launch import aligned, chip, wide
from .tiles import Layer, Tile


@dataclass(frozen=True)
class Problem:
    """A convolution: x, w (channels_last), y (not written yet) and the residual as the kernels take them."""

    x: Tensor
    w: Tensor
    y: Tensor
    residual: Tensor | None
    layer: Layer
    key: ConvKey

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        return (self.x.shape[0], *self.x.shape[2:], *self.y.shape[2:])

    def config(self, wanted: Conv | None, measured: Conv | None = None) -> Conv:
        """The wanted config; else the measured one where it fits, for this call may be another one of its kind; else
        the rule's. Raises ValueError where the wanted one does not fit."""
        if wanted is None:
            if measured is not None and not configs.conv_reasons(self.key, measured):
                return measured
            return configs.conv_config(self.key)
        if reasons := configs.conv_reasons(self.key, wanted):
            raise ValueError(f"config: {'; '.join(reasons)}; got {wanted} for {self.key}")
        return wanted

    def tile(self, config: Conv) -> Tile:
        box = configs.box(self.key, config.block_n) if config.descriptors else None
        return Tile(
            self.key.layout, config.block_m, config.block_n, config.block_k(self.key.element_size), config.splits > 1,
            box, configs.flat(self.key), self.key.precision, tl.int64 if self.key.wide else tl.int32,
        )  # fmt: skip

    def operands(self, tile: Tile) -> tuple:
        """x, w, residual and y, or descriptors of them."""
        if tile.box is None:
            return self.x, self.w, self.residual, self.y
        weights = self.w.permute(0, 2, 3, 1).reshape(self.w.shape[0], -1)
        block = (*tile.box, tile.m)
        outputs = (None if t is None else _map(t, block) for t in (self.residual, self.y))
        return _input(self.x, self.layer, tile), TensorDescriptor.from_tensor(weights, [tile.m, tile.k]), *outputs


def _map(x: Tensor, block: tuple[int, ...]) -> TensorDescriptor:
    """Of a channels_last tensor, as (N, H, W, C)."""
    batch, channels, height, width = x.shape
    strides = [height * width * channels, width * channels, channels, 1]  # those of sizes of 1 may be anything
    return TensorDescriptor(x, [batch, height, width, channels], strides, list(block))


def _input(x: Tensor, layer: Layer, tile: Tile) -> TensorDescriptor:
    """For stride 2 the view (N, H / 2, 2, W / 2, 2 C), in which every second row and column is contiguous."""
    assert tile.box is not None
    images, rows, columns = tile.box
    if layer.stride == (1, 1):
        return _map(x, (images, rows, columns, tile.k))
    batch, channels, height, width = x.shape
    shape = [batch, height // 2, 2, width // 2, 2 * channels]
    strides = [height * width * channels, 2 * width * channels, width * channels, 2 * channels, 1]
    return TensorDescriptor(x, shape, strides, [images, rows, 1, columns, tile.k])


def conv_key(
    input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int,
    memory_format: torch.memory_format = torch.contiguous_format, residual: Tensor | None = None, ending="epilogue",
) -> ConvKey:  # fmt: skip
    """What the choice of a config depends on; the tensors may be on the meta device."""
    size, kernel = (input.shape[2], input.shape[3]), (weight.shape[2], weight.shape[3])
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)
    )
    elements = input.numel(), weight.numel(), input.shape[0] * weight.shape[0] * height * width
    layout = "last" if memory_format == torch.channels_last else "planes"
    return ConvKey(
        *chip(input.device), input.element_size(), precision(input.dtype), layout, input.shape[0], input.shape[1], size,
        weight.shape[0], (height, width), kernel, stride, groups, aligned(input, weight, residual), wide(*elements),
        ending,
    )  # fmt: skip


def describe(
    input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int,
    memory_format: torch.memory_format, residual: Tensor | None = None, ending="epilogue",
) -> Problem:  # fmt: skip
    """The problem, and an output for it. What is in another layout is converted: the weight always to channels_last."""
    for name, tensor in (("input", input), ("weight", weight)):
        if tensor.dtype not in DTYPES or tensor.dtype != input.dtype:
            raise TypeError(f"{name}: expected float16, bfloat16 or float32, one for all, got {tensor.dtype}")
        if tensor.dim() != 4:
            raise ValueError(f"{name}: expected 4 dimensions, got shape {tuple(tensor.shape)}")
    if input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        got = f"input {tuple(input.shape)}, weight {tuple(weight.shape)}, {groups=}"
        raise ValueError(f"weight: expected (C_out, C / groups, kH, kW) with groups dividing C_out, got {got}")
    x = input.contiguous(memory_format=memory_format)
    w = weight.contiguous(memory_format=torch.channels_last)
    key = conv_key(x, w, stride, padding, dilation, groups, memory_format, residual, ending)
    if min(key.out_size) < 1:
        raise ValueError(f"input: expected room for the kernel, got an output of {key.out_size} for {key}")
    size = (key.batch, key.out_channels, *key.out_size)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format)
    if residual is not None and (residual.shape != y.shape or residual.dtype != y.dtype or not _alike(residual, y)):
        raise ValueError(
            f"residual: expected shape {size}, strides {y.stride()}, {y.dtype}, "
            f"got {tuple(residual.shape)}, {residual.stride()}, {residual.dtype}"
        )
    if key.depthwise:
        multiplier = key.out_channels // key.in_channels
        layer = Layer(1, key.out_channels, 1, key.kernel, stride, padding, dilation, multiplier)
    else:
        layer = Layer(*key.group_channels, groups, key.kernel, stride, padding, dilation)
    return Problem(x, w, y, residual, layer, key)


def _alike(a: Tensor, b: Tensor) -> bool:
    """The same strides where there is more than one element; of nothing any strides are."""
    return a.numel() == 0 or all(size == 1 or s == t for size, s, t in zip(a.shape, a.stride(), b.stride()))
