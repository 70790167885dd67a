"""Tile configs of the convolution kernels: the lists, the key that a choice depends on, constraints, pruning.

A call uses the config that was measured for it (atrous.tuning), else the one with the fewest predicted clocks. No call
tunes anything.
"""

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch

from ..gpus import REGISTERS, gpu, round_up
from .cost_model import Work, clocks, rates, rows_read

Pair = tuple[int, int]
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class ConvKey(NamedTuple):
    """A convolution as its kernels see it; channels count all groups, layout is "nhwc" or "nchw".

    chip: 80, 90, 100, ...; multiprocessors: of that GPU. precision: fp32 MMA in "tf32" or "ieee"; "tf32" for 16-bit
    tensors, where it has no effect. aligned: every tensor starts at a multiple of 16 bytes. int64_offsets: 32 bits do
    not hold the offsets. epilogue: "fixed" (BatchNorm, activation, residual), "random" (the same with random slopes)
    or "statistics" (mean and variance of the output instead).
    """

    chip: int
    multiprocessors: int
    element_size: int
    precision: str
    layout: str
    batch: int
    in_channels: int
    size: Pair
    out_channels: int
    out_size: Pair
    kernel: Pair
    stride: Pair
    groups: int
    aligned: bool = True
    int64_offsets: bool = False
    epilogue: str = "fixed"

    @property
    def group_channels(self) -> Pair:
        """Input and output channels of one group."""
        return self.in_channels // self.groups, self.out_channels // self.groups

    @property
    def depthwise(self) -> bool:
        return self.in_channels == self.groups > 1


class Conv(NamedTuple):
    """A tile of block_m output channels x block_n output pixels, and how it is computed.

    depth: bytes of one step along K, the reduction axis. splits: programs that split the reduction of one tile.
    waves: programs per multiprocessor of a persistent grid; 0: one program per tile. descriptors: loads and stores
    through tensor descriptors (TMA), else through pointers.
    """

    block_m: int
    block_n: int
    depth: int
    num_warps: int
    num_stages: int
    splits: int = 1
    waves: int = 0
    descriptors: bool = False

    def block_k(self, element_size: int) -> int:
        return self.depth // element_size

    def describe(self) -> str:
        """A readable name: "128x256x128B w8 s3 tma"."""
        options = [f"split{self.splits}"] * (self.splits > 1) + [f"persistent{self.waves}"] * (self.waves > 0)
        path = "tma" if self.descriptors else "ptr"
        return " ".join(
            [f"{self.block_m}x{self.block_n}x{self.depth}B w{self.num_warps} s{self.num_stages} {path}", *options]
        )

    @property
    def shared(self) -> int:
        """Bytes of shared memory: the stages of the main loop and 1 KiB for their barriers."""
        return self.num_stages * (self.block_m + self.block_n) * self.depth + 1024

    @property
    def accumulators(self) -> int:
        """Accumulators per thread."""
        return self.block_m * self.block_n // (32 * self.num_warps)


# Channels are M and pixels are N: on sm_90 both MMA operands come from shared memory. 128 bytes are one swizzled row of
# a descriptor's box; 64 bytes per cp.async step keep four stages small. Fewer stages let two programs share a
# multiprocessor, so that the epilogue of one overlaps the main loop of the other. None of them has been measured yet.
CONV = (
    Conv(64, 64, 128, 4, 4, descriptors=True),
    Conv(64, 128, 128, 4, 3, descriptors=True),
    Conv(64, 128, 128, 8, 4, descriptors=True),
    Conv(64, 256, 128, 8, 2, descriptors=True),
    Conv(64, 256, 128, 8, 3, descriptors=True),
    Conv(128, 64, 128, 8, 4, descriptors=True),
    Conv(128, 128, 128, 8, 3, descriptors=True),
    Conv(128, 128, 128, 8, 4, descriptors=True),
    Conv(128, 256, 128, 8, 3, descriptors=True),
    Conv(256, 128, 128, 8, 3, descriptors=True),
    Conv(64, 64, 64, 8, 4),
    Conv(64, 64, 64, 4, 4),
    Conv(64, 128, 64, 8, 4),
    Conv(128, 64, 64, 8, 4),
    Conv(128, 128, 64, 8, 3),
)
# A depthwise convolution is no matrix product: its tiles are long along the contiguous axis.
DEPTHWISE = {
    "nhwc": (Conv(64, 32, 0, 4, 1), Conv(16, 128, 0, 4, 1)),
    "nchw": (Conv(4, 512, 0, 4, 1), Conv(16, 128, 0, 4, 1)),
}
SPLITS = (1, 2, 4, 8, 16)
MIN_STEPS = 4  # per split: with fewer the pipeline does not fill
WAVES = (0, 2)
# Boxes of output pixels (images, rows, columns), the most compact first.
BOXES = {
    64: ((1, 8, 8), (4, 4, 4), (16, 2, 2), (64, 1, 1)),
    128: ((1, 8, 16), (2, 8, 8), (8, 4, 4), (32, 2, 2), (128, 1, 1)),
    256: ((1, 16, 16), (4, 8, 8), (16, 4, 4), (64, 2, 2), (256, 1, 1)),
}
FLAT_K_CHANNELS = 16  # with fewer, a step of one tap is mostly empty: K is the flattened axis (tap, channel)


def precision(dtype: torch.dtype) -> str:
    """Precision of the MMA: in fp32 what torch allows cuDNN's convolutions; it has no effect on 16-bit tensors."""
    cudnn: Any = torch.backends.cudnn  # mypy does not know its `conv`
    return "tf32" if dtype.itemsize < 4 or cudnn.conv.fp32_precision == "tf32" else "ieee"


def conv_options(config: Conv) -> dict[str, int]:
    """Compiler options. Without maxnreg ptxas gives 8 warps half of the registers that exist, and spills."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, "maxnreg": 255}


@lru_cache(maxsize=4096)
def box(key: ConvKey, block_n: int) -> tuple[int, int, int]:
    """The box whose grid covers the output with the fewest pixels outside of it."""
    sizes = key.batch, *key.out_size
    return min(BOXES[block_n], key=lambda box: prod(round_up(size, extent) for size, extent in zip(sizes, box)))


def flat_k(key: ConvKey) -> bool:
    """True if a step takes consecutive entries of (tap, channel), as in a stem; else it takes channels of one tap."""
    return key.group_channels[0] < FLAT_K_CHANNELS


def tiles(key: ConvKey) -> tuple[Conv, ...]:
    return DEPTHWISE[key.layout] if key.depthwise else CONV


def conv_grid(key: ConvKey, config: Conv) -> tuple[int, int, int]:
    """Channel tiles (of all groups), pixel tiles, steps of the reduction."""
    (in_channels, out_channels), groups = key.group_channels, key.groups
    block_k, taps = config.block_k(key.element_size), prod(key.kernel)
    if key.depthwise:
        out_channels, groups, steps = key.out_channels, 1, taps
    elif flat_k(key):
        steps = -(-taps * in_channels // block_k)
    else:
        steps = taps * -(-in_channels // block_k)
    sizes = key.batch, *key.out_size
    if config.descriptors:
        pixel_tiles = prod(-(-size // extent) for size, extent in zip(sizes, box(key, config.block_n)))
    else:
        pixel_tiles = -(-prod(sizes) // config.block_n)
    return groups * -(-out_channels // config.block_m), pixel_tiles, steps


def max_accumulators(key: ConvKey, config: Conv) -> int:
    """The accumulators per thread that the registers hold without spills, as the compile gate shows."""
    vectors = key.layout == "nhwc" and key.aligned and key.group_channels[0] * key.element_size % 16 == 0
    scalar_loads = not config.descriptors and (flat_k(key) or not vectors)  # one address per loaded element
    statistics = key.epilogue == "statistics"
    if key.precision == "ieee" or (scalar_loads and (statistics or key.int64_offsets)):
        return 16
    tight = config.splits > 1 or (statistics and (key.groups > 1 or key.chip >= 100))
    if scalar_loads or key.epilogue == "random" or (tight and not config.descriptors):
        return 32
    return 64 if statistics or config.splits > 1 else 128


def conv_reasons(key: ConvKey, config: Conv) -> list[str]:
    """The reasons why this config cannot run this convolution; [] if it can. All constraints are stated here."""
    listed = config._replace(splits=1, waves=0) in tiles(key) and config.splits in SPLITS and config.waves in WAVES
    if not listed:
        return ["expected a tile, splits and waves of the lists"]
    block_k, steps, shared = config.block_k(key.element_size), conv_grid(key, config)[2], gpu(key.chip).shared
    accumulators = max_accumulators(key, config)
    constraints = {
        f"at most {accumulators} accumulators per thread": config.accumulators <= accumulators,
        f"at most {shared} KiB of shared memory": config.shared <= shared << 10,
    }
    if config.splits > 1:
        constraints |= {
            f"at least {MIN_STEPS} steps per split": steps >= MIN_STEPS * config.splits,
            "splits=1 for a depthwise convolution": not key.depthwise,
            f"splits=1 with the epilogue {key.epilogue!r}": key.epilogue == "fixed",
            "splits or waves": config.waves == 0,
        }
    if config.descriptors:
        even = key.size[0] % 2 == 0 == key.size[1] % 2
        constraints |= {
            "sm_90 or newer": key.chip >= 90,
            "channels_last": key.layout == "nhwc",
            "aligned tensors": key.aligned,
            "tensor cores": key.precision != "ieee",
            "groups=1": key.groups == 1,
            f"input channels divisible by {block_k}": key.in_channels % block_k == 0,
            "output channels divisible by 16 bytes": key.out_channels * key.element_size % 16 == 0,
            "stride 1, or 2 and even H and W": key.stride == (1, 1) or (key.stride == (2, 2) and even),
        }
    return [f"expected {name}" for name, holds in constraints.items() if not holds]


def pixel_programs(key: ConvKey, config: Conv) -> int:
    """Programs among which the pixel tiles of one channel tile are distributed."""
    channel_tiles, pixel_tiles, _ = conv_grid(key, config)
    return min(pixel_tiles, -(-config.waves * key.multiprocessors // channel_tiles)) if config.waves else pixel_tiles


@lru_cache(maxsize=4096)
def conv_prune(key: ConvKey) -> list[Conv]:
    """The configs worth measuring, the best prediction first.

    Tries splits if the tiles do not fill the GPU, and a persistent grid if they are several times more than it holds.
    """
    candidates = []
    for tile in tiles(key):
        channel_tiles, pixel_tiles, _ = conv_grid(key, tile)
        programs = channel_tiles * pixel_tiles
        splits = [n for n in SPLITS if n == 1 or programs * n // 2 < key.multiprocessors]
        waves = [n for n in WAVES if n and (key.epilogue == "statistics" or programs > 2 * n * key.multiprocessors)]
        per_tile = [] if key.epilogue == "statistics" else [tile._replace(splits=n) for n in splits]
        candidates += per_tile + [tile._replace(waves=n) for n in waves]
    fitting = [config for config in candidates if not conv_reasons(key, config)]
    return sorted(fitting, key=lambda config: conv_cycles(key, config))


# Registers per thread besides the accumulators, with descriptors and with pointers (docs/triton-kernels.md).
OTHER_REGISTERS = {True: 60, False: 96}


def conv_work(key: ConvKey, config: Conv) -> Work:
    """A config's launch as the cost model sees it."""
    channel_tiles, pixel_tiles, steps = conv_grid(key, config)
    chip = gpu(key.chip)
    blocks = -(-channel_tiles * pixel_tiles * config.splits // key.multiprocessors)
    registers = 32 * config.num_warps * (config.accumulators + OTHER_REGISTERS[config.descriptors])
    resident = min(blocks, (chip.shared << 10) // config.shared, REGISTERS // registers)
    reads = rows_read(config.block_m, config.block_n, config.num_warps, chip.asynchronous > chip.mma)
    return Work(
        config.block_m, config.block_n, config.depth, key.element_size, -(-steps // config.splits), config.splits,
        reads, blocks, resident, not config.descriptors,
    )  # fmt: skip


def conv_cycles(key: ConvKey, config: Conv) -> float:
    """The predicted clocks of a config."""
    if key.depthwise:  # memory alone: the tile that wastes the fewest lanes
        channel_tiles, pixel_tiles, _ = conv_grid(key, config)
        return channel_tiles * pixel_tiles * config.block_m * config.block_n
    return clocks(conv_work(key, config), rates(key.chip, key.element_size))


def conv_config(key: ConvKey) -> Conv:
    """The config of a call for which none was measured: the first that pruning leaves."""
    return conv_prune(key)[0]
