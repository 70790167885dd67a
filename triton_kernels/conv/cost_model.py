"""The cost model of a tiled matrix product. gpus.def states its formula and constants; C++ has the same model.

It ranks the configs of a call for which none was measured, and orders what `tune` measures. bench/gpu/fit_cost_model.py
fits its rates to measured times.
"""

from typing import NamedTuple

from ..gpus import SHARED_BYTES, gpu

# Guesses until they are fitted: clocks to start a block (launch, vectors, first loads), and the factor by which address
# arithmetic slows loads through pointers.
START, POINTERS = 2000.0, 1.25


class Rates(NamedTuple):
    """Rates per clock and multiprocessor. mma: multiply-adds; l2, memory: bytes. start: clocks to start a block.
    pointers: the time of a load through pointers relative to one through a descriptor."""

    mma: float
    l2: float
    memory: float
    start: float = START
    pointers: float = POINTERS


def rates(chip: int, element_size: int) -> Rates:
    """The rates of gpus.def: Triton uses the asynchronous MMA instructions where they exist."""
    constants = gpu(chip)
    return Rates(constants.asynchronous * 2 / element_size, constants.l2, constants.memory)


class Work(NamedTuple):
    """A launch. m, n: outputs of a tile; depth: bytes of a step per row of both operands; steps: of one block;
    rows_read: operand rows that the MMAs of a step read from shared memory; blocks: run by the busiest multiprocessor;
    resident: blocks that it runs at once; pointers: loads go through pointers."""

    m: int
    n: int
    depth: int
    element_size: int
    steps: int
    splits: int
    rows_read: float
    blocks: int
    resident: int
    pointers: bool


def rows_read(m: int, n: int, num_warps: int, asynchronous: bool) -> float:
    """Operand rows that the MMAs of one step read from shared memory.

    A warp group's wgmma has 64 rows and reads all of its columns; with mma.sync the warps divide the tile about equally
    along both axes.
    """
    if asynchronous:
        across = max(1, 16 * num_warps // m)  # warp groups side by side, if m has no 64 rows for each
        return m * across + n * m / 64
    return (m + n) * num_warps**0.5


def clocks(work: Work, rates: Rates) -> float:
    """Predicted clocks of the whole launch. The epilogue of a block, which writes its tile and in every second layer
    reads a residual, overlaps the main loop of another block if two are resident."""
    loaded, outputs = (work.m + work.n) * work.depth, work.m * work.n
    step = max(
        outputs * work.depth / work.element_size / rates.mma,
        loaded * (rates.pointers if work.pointers else 1.0) / rates.l2,
        (work.m + work.n + work.rows_read) * work.depth / SHARED_BYTES,
    )
    main, epilogue = work.steps * step, 1.5 * outputs * work.element_size / rates.memory
    if work.splits > 1:
        epilogue += 4 * outputs * (1 + work.splits) / rates.l2
    tile = max(main, epilogue) if work.resident > 1 else main + epilogue
    return work.blocks * (tile + rates.start / work.resident)
