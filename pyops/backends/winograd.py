"""Which convolutions run as Winograd's on a CPU, and with which tile: the constraints, stated here only.

A tile of M x N outputs takes (M + 2) x (N + 2) products where a direct convolution takes 9 M N, but its sums have
larger rounding errors, its transformed weight is larger, and the transforms take time. So the tile is the one of the
least estimated time among those whose error is within a direct convolution's. The estimate depends on shapes and dtypes
alone: a network gives the same bits in every process.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import tuning
from ..core.spec import Spec
from ..core.torch_compat import cpu_multiplies_int16, cpu_product_rate


class Tile(NamedTuple):
    """The outputs of a tile, and whether it is multiplied in 16-bit fixed point instead of fp32."""

    height: int
    width: int
    int16: bool = False

    @property
    def positions(self) -> int:
        return (self.height + 2) * (self.width + 2)


# The tiles whose error is within that of oneDNN's direct convolution in fp32, channels_last, on maps of 28x28 and
# more, with the numbers of input channels for which it is (bench/results/NOTES.md), by the largest dilation. oneDNN's
# sums of 9 C products grow with C, but with many channels it splits them: of 512, or of 352 for 64 output channels;
# Winograd's are sums of sums of 16. From dilation 3 on it adds in another order, with half of the error, and leaves
# out taps in the padding. On smaller maps with 64 channels it adds in another order too, and 4x2 has 1.4 times its
# error. With fewer than 24 channels the transforms take longer than they save. Rounding the results to 16 bits costs
# far more, and to bfloat16 more than products in 16-bit fixed point do, where each 32 channels of a tile have a scale
# of their own.
CHANNELS = {
    2: {Tile(4, 4): range(160, 321), Tile(4, 2): range(64, sys.maxsize), Tile(2, 2): range(24, sys.maxsize)},
    4: {Tile(4, 2): range(192, 641), Tile(2, 2): range(64, sys.maxsize)},
    8: {Tile(2, 2): range(64, sys.maxsize)},
    sys.maxsize: {Tile(2, 2): range(128, 385)},
}
TILES = tuple(CHANNELS[2])
LEAST_CHANNELS = 24
LEAST_DILATED_CHANNELS = 64
LARGE = 2**13  # pixels over all images

# Estimates, in the time of one fp32 product at the processor's peak. Measured with AVX-512: bench/results/NOTES.md.
EFFICIENCY = 0.9  # fraction of the peak that the GEMMs and oneDNN's convolutions reach
TRANSFORM = 12  # an element of a transformed tile, in or out
READ = 16  # four bytes of a weight from memory, which products hide
DIRECT_GRADIENT = 0.7  # fraction of the peak that oneDNN's gradients of weights reach
TRANSFORM_GRADIENT = 40  # an element of a transformed tile, for the weight's gradient
TRANSFORM_WEIGHT = 35  # an element of a transformed weight, in a call that has to transform it


def reasons(input: Tensor, weight: Tensor, spec: Spec) -> list[str]:
    """Reasons why a frozen convolution does not run as Winograd's."""
    problems = _refusals(str(input.device), weight.shape, spec, input.dtype)
    if not problems and tile(input, weight, spec) is None:
        problems.append(
            f"size: expected one for which Winograd takes less time than a direct convolution, got input "
            f"{tuple(input.shape)}, {weight.shape[0]} output channels, dilation {spec.dilation}"
        )
    return problems


def tile(input: Tensor, weight: Tensor, spec: Spec, changing: bool = False) -> Tile | None:
    """The tile of a convolution; None if it does not run as Winograd's. changing: the weight is transformed in each
    call. With symbolic sizes the tile is that of a large map; if changing, only of LARGE pixels and more."""
    if tuning.all_ints((*input.shape, *weight.shape)):
        sizes = tuple(map(int, input.shape)), tuple(map(int, weight.shape))
        return _choose(input.device.type, *sizes, spec, input.dtype, changing)
    if _refusals(input.device.type, weight.shape, spec, input.dtype):
        return None
    if changing and input.shape[0] * input.shape[2] * input.shape[3] < LARGE:  # last: a symbolic size gets a guard
        return None
    return _eligible(weight.shape[1], spec, input.dtype)[0]


def tile_of(transformed: Tensor) -> Tile:
    """The tile of a transformed weight."""
    (tile,) = (tile for tile in TILES if tile.positions == transformed.shape[1])
    return tile._replace(int16=transformed.dtype == torch.int16)


def gradient_tile(input: Tensor, weight: Tensor, spec: Spec) -> Tile | None:
    """The tile of a weight's gradient; None if Winograd's transforms, with fp32 products, do not compute it."""
    if not tuning.all_ints((*input.shape, *weight.shape)):
        return None
    sizes = tuple(map(int, input.shape)), tuple(map(int, weight.shape))
    return _choose_gradient(input.device.type, *sizes, spec, input.dtype)


def _constraints(device: str, weight, spec: Spec, dtype: torch.dtype) -> list[str]:
    """weight: its shape."""
    problems = []
    if device != "cpu":
        problems.append(f"device: expected cpu, got {device}")
    if tuple(weight[2:]) != (3, 3):
        problems.append(f"kernel: expected (3, 3), got {tuple(weight[2:])}")
    if spec.stride != (1, 1):
        problems.append(f"stride: expected (1, 1), got {spec.stride}")
    if spec.groups != 1:
        problems.append(f"groups: expected 1, got {spec.groups}")
    least = LEAST_DILATED_CHANNELS if max(spec.dilation) > 1 else LEAST_CHANNELS
    if min(weight[:2]) < least:
        problems.append(f"channels: expected at least {least} in and out, got {weight[1]} and {weight[0]}")
    if dtype == torch.float64:
        problems.append("dtype: expected float32, float16 or bfloat16, got torch.float64")
    return problems


def _refusals(device: str, weight, spec: Spec, dtype: torch.dtype) -> list[str]:
    """The constraints of a forward or an input's gradient, whose errors count too."""
    problems = _constraints(device, weight, spec, dtype)
    if not problems and not _eligible(weight[1], spec, dtype):
        problems.append(
            f"channels: expected a number for which rounding errors are within a direct convolution's, got {weight[1]} "
            f"in with dilation {spec.dilation}"
        )
    return problems


def _eligible(channels: int, spec: Spec, dtype: torch.dtype) -> list[Tile]:
    """The tiles whose error allows them, the fewest products first."""
    if dtype != torch.float32:
        int16 = dtype == torch.bfloat16 and cpu_multiplies_int16()
        return [tile._replace(int16=int16) for tile in TILES]
    allowed = next(tiles for dilation, tiles in CHANNELS.items() if max(spec.dilation) <= dilation)
    return [tile for tile, counts in allowed.items() if channels in counts]


@lru_cache(maxsize=1024)  # an eager model asks in every call
def _choose(device: str, size, weight, spec: Spec, dtype: torch.dtype, changing: bool) -> Tile | None:
    if _refusals(device, weight, spec, dtype):
        return None
    channels, pairs = weight[0] + weight[1], weight[0] * weight[1]

    def winograd(tile: Tile) -> float:
        tiles = size[0] * tiles_of(tile, size[2:], spec.padding, spec.dilation)
        multiply = pairs * tile.positions * max(tiles / EFFICIENCY, READ) / (2 if tile.int16 else 1)
        transformed = pairs * tile.positions * TRANSFORM_WEIGHT * changing
        return multiply + transformed + tiles * tile.positions * channels * TRANSFORM

    best = min(_eligible(weight[1], spec, dtype), key=winograd)
    taps = size[0] * direct_taps(size[2:], spec.padding, spec.dilation)
    bytes_read = 9 * READ * dtype.itemsize / 4
    direct = pairs * max(taps / EFFICIENCY / cpu_product_rate(dtype), bytes_read)
    return best if winograd(best) < direct else None


@lru_cache(maxsize=1024)
def _choose_gradient(device: str, size, weight, spec: Spec, dtype: torch.dtype) -> Tile | None:
    if _constraints(device, weight, spec, dtype):
        return None
    tile, channels, pairs = Tile(4, 4), weight[0] + weight[1], weight[0] * weight[1]
    tiles = size[0] * tiles_of(tile, size[2:], spec.padding, spec.dilation)
    taps = size[0] * direct_taps(size[2:], spec.padding, spec.dilation)
    time = pairs * (tiles / EFFICIENCY + TRANSFORM_WEIGHT) + tiles * channels * TRANSFORM_GRADIENT
    return tile if time * tile.positions < pairs * taps / DIRECT_GRADIENT / cpu_product_rate(dtype) else None


def tiles_of(tile: Tile, size, padding, dilation) -> int:
    """The tiles of an image. A tile's outputs lie a dilation apart; each phase of the dilation has tiles of its own."""
    count = 1
    for length, pad, rate, outputs in zip(size, padding, dilation, tile[:2]):
        output = length + 2 * pad - 2 * rate
        each, longer = divmod(output, rate)  # `longer` of the `rate` phases have one output more
        count *= longer * -(-(each + 1) // outputs) + (rate - longer) * -(-each // outputs)
    return count


def direct_taps(size, padding, dilation) -> int:
    """A direct convolution's products for an image and a pair of channels. It leaves out the padding, as oneDNN's
    does, where a large dilation has most of its taps."""
    count = 1
    for length, pad, rate in zip(size, padding, dilation):
        output = length + 2 * pad - 2 * rate
        starts = [pad - tap * rate for tap in range(3)]
        count *= sum(max(0, min(output, length + start) - max(0, start)) for start in starts)
    return count
