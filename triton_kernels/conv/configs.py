"""The convolution's configs: their lists, the key that a choice depends on, their constraints and their prune function.

A call takes the config that was measured for it (atrous.tuning), else the one that is predicted to be the fastest.
Nothing is tuned in a call.
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
    """A convolution as its kernels see it; channels are those of all groups, layout is "last" or "planes" (NCHW).

    chip: 80, 90, 100, ...; multiprocessors: of that card. precision: of an fp32 product, "tf32" or "ieee" (of others
    "tf32", which means nothing there). aligned: whether 16 bytes divide the addresses of all tensors. wide: whether
    offsets need 64 bits. ending: what follows the sums: "epilogue", "draws" (an epilogue that draws its slopes) or
    "statistics".
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
    wide: bool = False
    ending: str = "epilogue"

    @property
    def group_channels(self) -> Pair:
        """In and out, of one group."""
        return self.in_channels // self.groups, self.out_channels // self.groups

    @property
    def depthwise(self) -> bool:
        return self.in_channels == self.groups > 1


class Conv(NamedTuple):
    """A tile of block_m output channels x block_n output pixels, and how it is computed.

    depth: bytes of one step along the reduction axis. splits: programs that share the reduction of one tile.
    waves: a persistent grid of so many programs a multiprocessor; 0: a program for each tile.
    descriptors: tensor descriptors and bulk copies, else pointers.
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
        """For people: "128x256x128B w8 s3 tma"."""
        more = [f"split{self.splits}"] * (self.splits > 1) + [f"persistent{self.waves}"] * (self.waves > 0)
        path = "tma" if self.descriptors else "ptr"
        return " ".join(
            [f"{self.block_m}x{self.block_n}x{self.depth}B w{self.num_warps} s{self.num_stages} {path}", *more]
        )

    @property
    def shared(self) -> int:
        """Bytes of shared memory: the stages of the main loop, and a little for their barriers."""
        return self.num_stages * (self.block_m + self.block_n) * self.depth + 1024

    @property
    def elements(self) -> int:
        """Of the tile, a thread."""
        return self.block_m * self.block_n // (32 * self.num_warps)


# Channels on M and pixels on N: on sm_90 both operands of the product come from shared memory. 128 bytes are one
# swizzled row of a descriptor's box; 64 of cp.async keep four stages small. Fewer stages let two programs share a
# multiprocessor, so that one's epilogue hides behind the other's products. None of them has been measured yet.
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
# A depthwise convolution is no matrix product: its tiles are long in the direction that is contiguous.
DEPTHWISE = {
    "last": (Conv(64, 32, 0, 4, 1), Conv(16, 128, 0, 4, 1)),
    "planes": (Conv(4, 512, 0, 4, 1), Conv(16, 128, 0, 4, 1)),
}
SPLITS = (1, 2, 4, 8, 16)
LEAST_STEPS = 4  # of a split: below it the pipeline does not fill
WAVES = (0, 2)
# Boxes of output pixels (images, rows, columns), the most compact first.
BOXES = {
    64: ((1, 8, 8), (4, 4, 4), (16, 2, 2), (64, 1, 1)),
    128: ((1, 8, 16), (2, 8, 8), (8, 4, 4), (32, 2, 2), (128, 1, 1)),
    256: ((1, 16, 16), (4, 8, 8), (16, 4, 4), (64, 2, 2), (256, 1, 1)),
}
FLAT_CHANNELS = 16  # with fewer channels a step that holds one tap is mostly empty: it runs over (tap, channel)


def precision(dtype: torch.dtype) -> str:
    """Of a product: in fp32 what torch allows cuDNN's convolutions; of 16-bit tensors it means nothing."""
    cudnn: Any = torch.backends.cudnn  # mypy does not know its `conv`
    return "tf32" if dtype.itemsize < 4 or cudnn.conv.fp32_precision == "tf32" else "ieee"


def conv_options(config: Conv) -> dict[str, int]:
    """The compiler's options. Left alone, ptxas gives 8 warps half of the registers that there are, and spills."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, "maxnreg": 255}


@lru_cache(maxsize=4096)
def box(key: ConvKey, block_n: int) -> tuple[int, int, int]:
    """The box that covers the output with the fewest pixels outside of it."""
    sizes = key.batch, *key.out_size
    return min(BOXES[block_n], key=lambda box: prod(round_up(size, extent) for size, extent in zip(sizes, box)))


def flat(key: ConvKey) -> bool:
    return key.group_channels[0] < FLAT_CHANNELS


def tiles(key: ConvKey) -> tuple[Conv, ...]:
    return DEPTHWISE[key.layout] if key.depthwise else CONV


def conv_grid(key: ConvKey, config: Conv) -> tuple[int, int, int]:
    """Tiles of channels (of all groups), tiles of pixels, steps of the reduction."""
    (in_channels, out_channels), groups = key.group_channels, key.groups
    block_k, taps = config.block_k(key.element_size), prod(key.kernel)
    if key.depthwise:
        out_channels, groups, steps = key.out_channels, 1, taps
    elif flat(key):
        steps = -(-taps * in_channels // block_k)
    else:
        steps = taps * -(-in_channels // block_k)
    sizes = key.batch, *key.out_size
    if config.descriptors:
        pixel_tiles = prod(-(-size // extent) for size, extent in zip(sizes, box(key, config.block_n)))
    else:
        pixel_tiles = -(-prod(sizes) // config.block_n)
    return groups * -(-out_channels // config.block_m), pixel_tiles, steps


def most_elements(key: ConvKey, config: Conv) -> int:
    """Of a tile, a thread: what its registers hold without spills, as the compile gate found."""
    vectors = key.layout == "last" and key.aligned and key.group_channels[0] * key.element_size % 16 == 0
    single = not config.descriptors and (flat(key) or not vectors)  # an address for each element that is loaded
    statistics = key.ending == "statistics"
    if key.precision == "ieee" or (single and (statistics or key.wide)):
        return 16
    tight = config.splits > 1 or (statistics and (key.groups > 1 or key.chip >= 100))
    if single or key.ending == "draws" or (tight and not config.descriptors):
        return 32
    return 64 if statistics or config.splits > 1 else 128


def conv_reasons(key: ConvKey, config: Conv) -> list[str]:
    """Why this config cannot run this convolution: the one statement of their constraints."""
    listed = config._replace(splits=1, waves=0) in tiles(key) and config.splits in SPLITS and config.waves in WAVES
    if not listed:
        return ["expected a tile, splits and waves of the lists"]
    block_k, steps, most = config.block_k(key.element_size), conv_grid(key, config)[2], most_elements(key, config)
    limit = gpu(key.chip).shared
    wanted = {
        f"at most {most} elements a thread": config.elements <= most,
        f"at most {limit} KiB of shared memory": config.shared <= limit << 10,
    }
    if config.splits > 1:
        wanted |= {
            f"at least {LEAST_STEPS} steps a split": steps >= LEAST_STEPS * config.splits,
            "splits=1 for a depthwise convolution": not key.depthwise,
            f"splits=1 before {key.ending}": key.ending == "epilogue",
            "splits or waves": config.waves == 0,
        }
    if config.descriptors:
        even = key.size[0] % 2 == 0 == key.size[1] % 2
        wanted |= {
            "sm_90 or newer": key.chip >= 90,
            "channels_last": key.layout == "last",
            "aligned tensors": key.aligned,
            "tensor cores": key.precision != "ieee",
            "groups=1": key.groups == 1,
            f"input channels divisible by {block_k}": key.in_channels % block_k == 0,
            "output channels divisible by 16 bytes": key.out_channels * key.element_size % 16 == 0,
            "stride 1, or 2 and even H and W": key.stride == (1, 1) or (key.stride == (2, 2) and even),
        }
    return [f"expected {name}" for name, holds in wanted.items() if not holds]


def pixel_programs(key: ConvKey, config: Conv) -> int:
    """Programs that share the tiles of pixels."""
    channel_tiles, pixel_tiles, _ = conv_grid(key, config)
    return min(pixel_tiles, -(-config.waves * key.multiprocessors // channel_tiles)) if config.waves else pixel_tiles


@lru_cache(maxsize=4096)
def conv_prune(key: ConvKey) -> list[Conv]:
    """What is worth measuring, the best prediction first: splits where the tiles do not fill the card, a persistent
    grid where they are several times more than it holds."""
    found = []
    for tile in tiles(key):
        channel_tiles, pixel_tiles, _ = conv_grid(key, tile)
        programs = channel_tiles * pixel_tiles
        splits = [n for n in SPLITS if n == 1 or programs * n // 2 < key.multiprocessors]
        waves = [n for n in WAVES if n and (key.ending == "statistics" or programs > 2 * n * key.multiprocessors)]
        whole = [] if key.ending == "statistics" else [tile._replace(splits=n) for n in splits]
        found += whole + [tile._replace(waves=n) for n in waves]
    fitting = [config for config in found if not conv_reasons(key, config)]
    return sorted(fitting, key=lambda config: conv_cycles(key, config))


# Registers that a thread needs beside its sums, with descriptors and with pointers (README's table of the configs).
BESIDE = {True: 60, False: 96}


def conv_work(key: ConvKey, config: Conv) -> Work:
    """A config's launch as the cost model sees it."""
    channel_tiles, pixel_tiles, steps = conv_grid(key, config)
    here = gpu(key.chip)
    blocks = -(-channel_tiles * pixel_tiles * config.splits // key.multiprocessors)
    registers = 32 * config.num_warps * (config.elements + BESIDE[config.descriptors])
    resident = min(blocks, (here.shared << 10) // config.shared, REGISTERS // registers)
    reads = rows_read(config.block_m, config.block_n, config.num_warps, here.asynchronous > here.mma)
    return Work(
        config.block_m, config.block_n, config.depth, key.element_size, -(-steps // config.splits), config.splits,
        reads, blocks, resident, not config.descriptors,
    )  # fmt: skip


def conv_cycles(key: ConvKey, config: Conv) -> float:
    """What the cost model predicts for a config, in clocks."""
    if key.depthwise:  # memory alone: the tile that wastes the fewest lanes
        channel_tiles, pixel_tiles, _ = conv_grid(key, config)
        return channel_tiles * pixel_tiles * config.block_m * config.block_n
    return clocks(conv_work(key, config), rates(key.chip, key.element_size))


def conv_config(key: ConvKey) -> Conv:
    """The config of a call without a measured one: the first that pruning leaves."""
    return conv_prune(key)[0]
