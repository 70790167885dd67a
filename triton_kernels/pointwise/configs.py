"""Tile configs of the pointwise kernels: the lists, the key that a choice depends on, and the prune function."""

from functools import lru_cache
from typing import NamedTuple

from ..gpus import round_up


class PointwiseKey(NamedTuple):
    """A tensor as the pointwise kernels see it: a row-major matrix.

    layout        rows   columns   channel          used for
    "nhwc"        N * P  C         column           channels_last, and tensors with one pixel per channel
    "nchw"        N * C  P         row % C          NCHW
    "nchw_flat"   N      C * P     column // P      NCHW whose P pixels per channel are not whole 16-byte accesses
    """

    layout: str
    rows: int
    cols: int


class Pointwise(NamedTuple):
    """A tile of block_rows x block_cols and its number of warps."""

    block_rows: int
    block_cols: int
    num_warps: int


# 2048 elements on 128 threads: two 16-byte accesses per thread and tensor in fp16, four in fp32.
# In order of preference: "nchw" loads per-channel vectors once per row, so its rows are long; the others load them once
# per column, so their columns are deep.
POINTWISE = {
    "nhwc": (Pointwise(32, 64, 4), Pointwise(8, 256, 4), Pointwise(128, 16, 4)),
    "nchw": (Pointwise(2, 1024, 4), Pointwise(8, 256, 4), Pointwise(32, 64, 4)),
    "nchw_flat": (Pointwise(8, 256, 4), Pointwise(2, 1024, 4)),
}
# Pixels per channel from which the layout is "nchw" even if they are not whole 16-byte accesses.
NCHW_PIXELS = 1024
# Programs per multiprocessor that the launcher aims at, two waves of eight: beyond them a program loops over several
# row tiles and keeps the vectors in registers. Not measured yet.
POINTWISE_PROGRAMS = 16
# Programs per multiprocessor of a reduction. Each stores three numbers per channel that one program reads back, so
# there are few, each with eight warps and a pipeline of three tiles in flight to shared memory: 24 KiB per
# multiprocessor of one 2-byte tensor, where a copy needs about 16. REDUCTION_STEPS is the least number of tiles that a
# program reads, so that what it stores is little beside them. All of these are guesses, not measured yet.
REDUCTION_PROGRAMS = 2
REDUCTION_STEPS = 4


def pointwise_registers(element_size: int) -> int:
    """Register limit per thread: four programs fit a multiprocessor, three in fp64.

    Without a limit ptxas aims lower on sm_80 and spills.
    """
    return 128 if element_size < 8 else 168


def gradient_registers(element_size: int) -> int:
    """Register limit per thread of the gradient, which holds one tensor more: three programs, two in fp64."""
    return 168 if element_size < 8 else 255


def reduction_options(config: Pointwise, element_size: int, int64_offsets: bool) -> dict[str, int]:
    """Warps, register limit per thread and pipeline stages, so that two programs fit a multiprocessor.

    With 64-bit offsets or in fp64 one program may use all registers; fp64 tiles are too large to wait in shared memory.
    """
    registers = 255 if int64_offsets or element_size == 8 else 128
    return {"num_warps": 2 * config.num_warps, "maxnreg": registers, "STAGES": 1 if element_size == 8 else 4}


def pointwise_prune(key: PointwiseKey) -> list[Pointwise]:
    """The configs of the key's layout whose tiles, masked lanes included, cover at most 1/8 more than the tightest."""
    covered = {
        config: round_up(key.rows, config.block_rows) * round_up(key.cols, config.block_cols)
        for config in POINTWISE[key.layout]
    }
    least = min(covered.values())
    return [config for config, elements in covered.items() if elements <= least * 9 // 8]


@lru_cache(maxsize=4096)
def pointwise_config(key: PointwiseKey) -> Pointwise:
    """The config of a call: the first that pruning leaves."""
    return pointwise_prune(key)[0]
