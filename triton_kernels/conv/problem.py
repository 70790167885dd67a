"""A convolution problem checked from tensors: its config key, the shape of its output, its launch descriptors."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import TYPE_CHECKING

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..launch import aligned, chip, needs_int64
from . import configs
from .configs import DTYPES, Conv, ConvKey, precision
from .tiles import Layer, Tile

if TYPE_CHECKING:
    from ...core.spec import Spec


@dataclass(frozen=True, eq=False)
class Problem:
    """A convolution with checked arguments; size and strides are those of its output."""

    layer: Layer
    key: ConvKey
    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @cached_property
    def sizes(self) -> tuple[int, int, int, int, int]:
        return self.key.batch, *self.key.size, *self.key.out_size

    def config(self, requested: Conv | None, measured: Conv | None = None) -> Conv:
        """The requested config; if None, the measured one if it fits (it was measured for a class of calls), else the
        predicted one. Raises ValueError if the requested one does not fit."""
        if requested is None:
            if measured is not None and not configs.conv_reasons(self.key, measured):
                return measured
            return configs.conv_config(self.key)
        if reasons := configs.conv_reasons(self.key, requested):
            raise ValueError(f"config: {'; '.join(reasons)}; got {requested} for {self.key}")
        return requested

    def tile(self, config: Conv) -> Tile:
        box = configs.box(self.key, config.block_n) if config.descriptors else None
        return Tile(
            self.key.layout, config.block_m, config.block_n, config.block_k(self.key.element_size), config.splits > 1,
            box, configs.flat_k(self.key), self.key.precision, tl.int64 if self.key.int64_offsets else tl.int32,
        )  # fmt: skip

    def descriptors(self, tile: Tile) -> "Descriptors | None":
        """Descriptors of x, w and the outputs; None if the tile is addressed by pointers."""
        if tile.box is None:
            return None
        m, k = self.key.out_channels, prod(self.key.kernel) * self.key.in_channels
        return Descriptors(
            _input_descriptor(self.key, tile, self.dtype),
            _descriptor(self.dtype, [m, k], [k, 1], [tile.m, tile.k]),
            _nhwc_descriptor(self.dtype, self.size, (*tile.box, tile.m)),
        )


@dataclass(frozen=True)
class Descriptors:
    """Tensor descriptors without memory: TMA's rules for shape, strides and block are checked once per problem."""

    x: TensorDescriptor
    w: TensorDescriptor
    y: TensorDescriptor

    def of(self, x: Tensor, w: Tensor, *outputs: Tensor | None) -> tuple[TensorDescriptor | None, ...]:
        """Descriptors of these tensors; outputs have the shape of y and may include the residual."""
        x_w = _with_base(self.x, x), _with_base(self.w, w)
        return *x_w, *[None if t is None else _with_base(self.y, t) for t in outputs]


def _with_base(descriptor: TensorDescriptor, base: Tensor) -> TensorDescriptor:
    """The same descriptor for another tensor, which must be 16-byte aligned (ConvKey.aligned)."""
    copy = object.__new__(TensorDescriptor)  # skips the checks of __init__
    copy.__dict__.update(descriptor.__dict__)
    copy.base = base
    return copy


def _descriptor(dtype: torch.dtype, shape: list[int], strides: list[int], block: list[int]) -> TensorDescriptor:
    return TensorDescriptor(torch.empty(0, dtype=dtype, device="meta"), shape, strides, block)


def _nhwc_descriptor(dtype: torch.dtype, size: tuple[int, ...], block: tuple[int, ...]) -> TensorDescriptor:
    """The descriptor of a channels_last tensor of this size, as (N, H, W, C)."""
    batch, channels, height, width = size
    strides = [height * width * channels, width * channels, channels, 1]
    return _descriptor(dtype, [batch, height, width, channels], strides, list(block))


def _input_descriptor(key: ConvKey, tile: Tile, dtype: torch.dtype) -> TensorDescriptor:
    """The descriptor of x. For stride 2 it describes the view (N, H / 2, 2, W / 2, 2 C), in which a box of every second
    row and column is dense."""
    assert tile.box is not None
    images, rows, columns = tile.box
    batch, channels, (height, width) = key.batch, key.in_channels, key.size
    if key.stride == (1, 1):
        return _nhwc_descriptor(dtype, (batch, channels, height, width), (images, rows, columns, tile.k))
    shape = [batch, height // 2, 2, width // 2, 2 * channels]
    strides = [height * width * channels, 2 * width * channels, width * channels, 2 * channels, 1]
    return _descriptor(dtype, shape, strides, [images, rows, 1, columns, tile.k])


def conv_key(
    input: Tensor, weight: Tensor, spec: "Spec", memory_format: torch.memory_format = torch.contiguous_format,
    residual: Tensor | None = None, epilogue="fixed",
) -> ConvKey:  # fmt: skip
    """The key that the choice of a config depends on; the tensors may be on the meta device."""
    return _key(
        input.shape, input.dtype, weight.shape, spec, memory_format, epilogue,
        chip(input.device), precision(input.dtype), aligned(input, weight, residual),
    )  # fmt: skip


def _key(
    x: torch.Size, dtype: torch.dtype, w: torch.Size, spec: "Spec", memory_format: torch.memory_format, epilogue: str,
    gpu: tuple[int, int], precision: str, aligned: bool,
) -> ConvKey:  # fmt: skip
    size, kernel = (x[2], x[3]), (w[2], w[3])
    out_size = spec.output_size(size, kernel)
    layout = "nhwc" if memory_format == torch.channels_last else "nchw"
    return ConvKey(
        *gpu, dtype.itemsize, precision, layout, x[0], x[1], size, w[0], out_size, kernel, spec.stride, spec.groups,
        aligned, needs_int64(prod(x), prod(w), x[0] * w[0] * prod(out_size)), epilogue,
    )  # fmt: skip


def to_layout(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """x in this memory format, copied if it has another. Other than 4 dimensions are left to `describe`'s checks."""
    if x.dim() != 4 or x.is_contiguous(memory_format=memory_format):
        return x
    return x.contiguous(memory_format=memory_format)


def describe(
    x: Tensor, w: Tensor, spec: "Spec", memory_format: torch.memory_format, residual: Tensor | None = None,
    epilogue="fixed",
) -> Problem:  # fmt: skip
    """The problem of an x and a residual in memory_format and a channels_last w, cached by all but the tensors' values.

    Raises TypeError, ValueError if the tensors are not those of a convolution that the kernels support.
    """
    addend = None if residual is None else (residual.shape, residual.dtype)
    return _describe(
        x.shape, x.dtype, w.shape, w.dtype, addend, spec, memory_format, epilogue,
        chip(x.device), precision(x.dtype), aligned(x, w, residual),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _describe(
    x: torch.Size, dtype: torch.dtype, w: torch.Size, w_dtype: torch.dtype,
    residual: tuple[torch.Size, torch.dtype] | None, spec: "Spec", memory_format: torch.memory_format, epilogue: str,
    gpu: tuple[int, int], precision: str, aligned: bool,
) -> Problem:  # fmt: skip
    for name, shape, got in (("input", x, dtype), ("weight", w, w_dtype)):
        if got not in DTYPES or got != dtype:
            raise TypeError(f"{name}: expected float16, bfloat16 or float32, one for all, got {got}")
        if len(shape) != 4:
            raise ValueError(f"{name}: expected 4 dimensions, got shape {tuple(shape)}")
    if x[1] != w[1] * spec.groups or w[0] % spec.groups:
        shapes = f"input {tuple(x)}, weight {tuple(w)}, groups={spec.groups}"
        raise ValueError(f"weight: expected (C_out, C / groups, kH, kW) with groups dividing C_out, got {shapes}")
    key = _key(x, dtype, w, spec, memory_format, epilogue, gpu, precision, aligned)
    if min(key.out_size) < 1:
        raise ValueError(f"input: expected an output of at least 1 x 1, got {key.out_size} for {key}")
    size = (key.batch, key.out_channels, *key.out_size)
    strides = torch.empty(size, device="meta", memory_format=memory_format).stride()  # allocates nothing
    if residual is not None and residual != (size, dtype):
        shapes = f"{size}, {dtype}, got {tuple(residual[0])}, {residual[1]}"
        raise ValueError(f"residual: expected shape, dtype {shapes}")
    if key.depthwise:
        multiplier = key.out_channels // key.in_channels
        layer = Layer(1, key.out_channels, 1, key.kernel, spec.stride, spec.padding, spec.dilation, multiplier)
    else:
        layer = Layer(*key.group_channels, spec.groups, key.kernel, spec.stride, spec.padding, spec.dilation)
    return Problem(layer, key, size, strides, dtype)
