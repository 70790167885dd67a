"""The pointwise kernel's configs: their list, the key that a choice depends on, and its prune function."""

from functools import lru_cache
from typing import NamedTuple

from ..gpus import round_up


class PointwiseKey(NamedTuple):
    """A tensor as the pointwise kernel sees it: a matrix of rows that follow one another in memory.

    layout        rows   columns   channel          for
    "last"        N * P  C         column           channels_last, and planes of one pixel
    "planes"      N * C  P         row % C          NCHW
    "flat"        N      C * P     column // P      NCHW with planes that 16-byte accesses do not divide
    """

    layout: str
    rows: int
    cols: int


class Pointwise(NamedTuple):
    """A tile of block_rows x block_cols, and the warps that share it."""

    block_rows: int
    block_cols: int
    num_warps: int


# 2048 elements on 128 threads: two 16-byte accesses a thread and tensor in fp16, four in fp32.
# In order of preference: "planes" takes its channels' vectors once a row, so its rows are long; the others take them
# once a column, so their columns are deep.
POINTWISE = {
    "last": (Pointwise(32, 64, 4), Pointwise(8, 256, 4), Pointwise(128, 16, 4)),
    "planes": (Pointwise(2, 1024, 4), Pointwise(8, 256, 4), Pointwise(32, 64, 4)),
    "flat": (Pointwise(8, 256, 4), Pointwise(2, 1024, 4)),
}
# Pixels from which a plane is a row of its own even where 16-byte accesses do not divide it.
PLANE_LONG = 1024
# Programs a multiprocessor that the launcher aims at, two waves of eight: beyond them a program goes over several row
# tiles with the vectors in registers. Not measured yet.
POINTWISE_PROGRAMS = 16
# The same of a reduction, whose programs each leave three numbers a channel for one program to read: few of them, each
# with eight warps and a pipeline of three tiles on their way to shared memory, 24 KiB a multiprocessor of one 2-byte
# tensor, where a copy needs about 16. And the tiles that a program has at least, so that what it leaves is little
# beside what it read. All are guesses, not measured yet.
REDUCTION_PROGRAMS = 2
REDUCTION_STEPS = 4


def pointwise_registers(element_size: int) -> int:
    """The most that a thread may take: four programs fit a multiprocessor, three in fp64. Left alone, ptxas aims lower
    on sm_80 and spills."""
    return 128 if element_size < 8 else 168


def gradient_registers(element_size: int) -> int:
    """The same of the gradient, which holds one tensor more: three programs, two in fp64."""
    return 168 if element_size < 8 else 255


def reduction_options(config: Pointwise, element_size: int, wide: bool) -> dict[str, int]:
    """Warps, the most registers of a thread, so that two programs fit a multiprocessor, and the pipeline's stages. With
    64-bit offsets or in fp64 one program may have all registers; tiles of fp64 are too large to wait in shared memory.
    """
    most = 255 if wide or element_size == 8 else 128
    return {"num_warps": 2 * config.num_warps, "maxnreg": most, "STAGES": 1 if element_size == 8 else 4}


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
    """The config that a call takes: the first that pruning leaves."""
    return pointwise_prune(key)[0]
