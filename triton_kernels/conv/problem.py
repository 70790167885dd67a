"""What a convolution is to its kernels: its key, what an output of it looks like, and the operands of a launch."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..launch import aligned, chip, wide
from . import configs
from .configs import DTYPES, Conv, ConvKey, Pair, precision
from .tiles import Layer, Tile


@dataclass(frozen=True, eq=False)
class Problem:
    """A convolution whose arguments were checked; size and strides are those of its output."""

    layer: Layer
    key: ConvKey
    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @cached_property
    def sizes(self) -> tuple[int, int, int, int, int]:
        return self.key.batch, *self.key.size, *self.key.out_size

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

    def descriptors(self, tile: Tile) -> "Descriptors | None":
        """Those of a launch's x, w and outputs; None for pointers."""
        if tile.box is None:
            return None
        (taps_h, taps_w), k = self.key.kernel, self.key.in_channels
        weight, depth = self.key.out_channels, taps_h * taps_w * k
        return Descriptors(
            _input(self.key, tile, self.dtype),
            _descriptor(self.dtype, [weight, depth], [depth, 1], [tile.m, tile.k]),
            _map(self.dtype, (self.key.batch, self.key.out_channels, *self.key.out_size), (*tile.box, tile.m)),
        )


@dataclass(frozen=True)
class Descriptors:
    """Tensor descriptors without their memory: what TMA asks of shape, strides and block is checked when they are made,
    once for a kind of call."""

    x: TensorDescriptor
    w: TensorDescriptor
    y: TensorDescriptor

    def of(self, x: Tensor, w: Tensor, *outputs: Tensor | None) -> tuple[TensorDescriptor | None, ...]:
        """Those of these tensors: outputs are the residual or what is written."""
        return _at(self.x, x), _at(self.w, w), *[None if t is None else _at(self.y, t) for t in outputs]


def _at(descriptor: TensorDescriptor, base: Tensor) -> TensorDescriptor:
    """The same of another tensor, whose address 16 bytes divide (ConvKey.aligned)."""
    made = object.__new__(TensorDescriptor)  # without the checks of its __init__
    made.__dict__.update(descriptor.__dict__)
    made.base = base
    return made


def _descriptor(dtype: torch.dtype, shape: list[int], strides: list[int], block: list[int]) -> TensorDescriptor:
    return TensorDescriptor(torch.empty(0, dtype=dtype, device="meta"), shape, strides, block)


def _map(dtype: torch.dtype, size: tuple[int, ...], block: tuple[int, ...]) -> TensorDescriptor:
    """Of a channels_last tensor of this size, as (N, H, W, C)."""
    batch, channels, height, width = size
    strides = [height * width * channels, width * channels, channels, 1]
    return _descriptor(dtype, [batch, height, width, channels], strides, list(block))


def _input(key: ConvKey, tile: Tile, dtype: torch.dtype) -> TensorDescriptor:
    """For stride 2 the view (N, H / 2, 2, W / 2, 2 C), in which every second row and column is contiguous."""
    assert tile.box is not None
    images, rows, columns = tile.box
    batch, channels, (height, width) = key.batch, key.in_channels, key.size
    if key.stride == (1, 1):
        return _map(dtype, (batch, channels, height, width), (images, rows, columns, tile.k))
    shape = [batch, height // 2, 2, width // 2, 2 * channels]
    strides = [height * width * channels, 2 * width * channels, width * channels, 2 * channels, 1]
    return _descriptor(dtype, shape, strides, [images, rows, 1, columns, tile.k])


def conv_key(
    input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int,
    memory_format: torch.memory_format = torch.contiguous_format, residual: Tensor | None = None, ending="epilogue",
) -> ConvKey:  # fmt: skip
    """What the choice of a config depends on; the tensors may be on the meta device."""
    return _key(
        input.shape, input.dtype, weight.shape, stride, padding, dilation, groups, memory_format, ending,
        chip(input.device), precision(input.dtype), aligned(input, weight, residual),
    )  # fmt: skip


def _key(
    x: torch.Size, dtype: torch.dtype, w: torch.Size, stride: Pair, padding: Pair, dilation: Pair, groups: int,
    memory_format: torch.memory_format, ending: str, gpu: tuple[int, int], product: str, aligned: bool,
) -> ConvKey:  # fmt: skip
    size, kernel = (x[2], x[3]), (w[2], w[3])
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)
    )
    layout = "last" if memory_format == torch.channels_last else "planes"
    return ConvKey(
        *gpu, dtype.itemsize, product, layout, x[0], x[1], size, w[0], (height, width), kernel, stride, groups,
        aligned, wide(prod(x), prod(w), x[0] * w[0] * height * width), ending,
    )  # fmt: skip


def laid_out(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """x as the kernels read it: a copy where it lies otherwise. `describe` refuses what has not 4 dimensions."""
    if x.dim() != 4 or x.is_contiguous(memory_format=memory_format):
        return x
    return x.contiguous(memory_format=memory_format)


Like = tuple[torch.Size, tuple[int, ...], torch.dtype]  # shape, strides and dtype of a tensor


def describe(
    x: Tensor, w: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int,
    memory_format: torch.memory_format, residual: Tensor | None = None, ending="epilogue",
) -> Problem:  # fmt: skip
    """The problem of an x and a w that are laid out as the kernels read them; it is made once for a kind of call."""
    like = None if residual is None else (residual.shape, residual.stride(), residual.dtype)
    return _describe(
        x.shape, x.dtype, w.shape, w.dtype, like, stride, padding, dilation, groups, memory_format, ending,
        chip(x.device), precision(x.dtype), aligned(x, w, residual),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _describe(
    x: torch.Size, dtype: torch.dtype, w: torch.Size, w_dtype: torch.dtype, residual: Like | None,
    stride: Pair, padding: Pair, dilation: Pair, groups: int, memory_format: torch.memory_format, ending: str,
    gpu: tuple[int, int], product: str, aligned: bool,
) -> Problem:  # fmt: skip
    for name, shape, got in (("input", x, dtype), ("weight", w, w_dtype)):
        if got not in DTYPES or got != dtype:
            raise TypeError(f"{name}: expected float16, bfloat16 or float32, one for all, got {got}")
        if len(shape) != 4:
            raise ValueError(f"{name}: expected 4 dimensions, got shape {tuple(shape)}")
    if x[1] != w[1] * groups or w[0] % groups:
        shapes = f"input {tuple(x)}, weight {tuple(w)}, {groups=}"
        raise ValueError(f"weight: expected (C_out, C / groups, kH, kW) with groups dividing C_out, got {shapes}")
    key = _key(x, dtype, w, stride, padding, dilation, groups, memory_format, ending, gpu, product, aligned)
    if min(key.out_size) < 1:
        raise ValueError(f"input: expected room for the kernel, got an output of {key.out_size} for {key}")
    size = (key.batch, key.out_channels, *key.out_size)
    strides = torch.empty(size, device="meta", memory_format=memory_format).stride()  # meta: nothing is allocated
    if residual is not None:
        _check_residual(residual, (torch.Size(size), strides, dtype))
    if key.depthwise:
        multiplier = key.out_channels // key.in_channels
        layer = Layer(1, key.out_channels, 1, key.kernel, stride, padding, dilation, multiplier)
    else:
        layer = Layer(*key.group_channels, groups, key.kernel, stride, padding, dilation)
    return Problem(layer, key, size, strides, dtype)


def _check_residual(residual: Like, y: Like) -> None:
    """Raises ValueError unless it is laid out as y is; strides of sizes of 1, and of nothing, mean nothing."""
    same = 0 in y[0] or all(size == 1 or s == t for size, s, t in zip(y[0], residual[1], y[1]))
    if residual[0] != y[0] or residual[2] != y[2] or not same:
        expected, got = (f"{tuple(shape)}, {strides}, {dtype}" for shape, strides, dtype in (y, residual))
        raise ValueError(f"residual: expected shape, strides, dtype {expected}, got {got}")
