"""The cost model of a matrix product in tiles: gpus.def states its formula and has its constants, C++ has the same.

It ranks configs for a call that nobody has measured, and chooses what `tune` measures first; the rates that explain
measured times best are found by bench/gpu/fit_cost_model.py.
"""

from typing import NamedTuple

from ..gpus import SHARED_BYTES, gpu

# Guesses until they are fitted: clocks of a block's start (launch, vectors, first loads), and by how much addresses
# slow the loads of pointers.
START, POINTERS = 2000.0, 1.25


class Rates(NamedTuple):
    """A clock and a multiprocessor. products: of multiply-adds; l2, memory: bytes. start: clocks of a block's start.
    pointers: what a load through pointers takes beside one through a descriptor."""

    products: float
    l2: float
    memory: float
    start: float = START
    pointers: float = POINTERS


def rates(chip: int, element_size: int) -> Rates:
    """Of the table: Triton takes the asynchronous products where there are any."""
    here = gpu(chip)
    return Rates(here.asynchronous * 2 / element_size, here.l2, here.memory)


class Work(NamedTuple):
    """A launch. m, n: a tile's outputs; depth: bytes of a step, for each row of both operands; steps: of one block;
    rows_read: rows of both operands that a step's products read in shared memory; blocks: of the busiest
    multiprocessor; resident: those that share it at once."""

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
    """A product of a warp group (wgmma) has 64 rows and reads all columns of its own; four groups of 32 lanes share the
    matrix of a tile in about as many parts each way (mma.sync)."""
    if asynchronous:
        across = max(1, 16 * num_warps // m)  # warp groups side by side, where m has no 64 rows for each
        return m * across + n * m / 64
    return (m + n) * num_warps**0.5


def clocks(work: Work, rates: Rates) -> float:
    """A prediction for the whole launch. A tile's output, and its residual at every second layer, hide behind another
    block's products if two are resident."""
    loaded, outputs = (work.m + work.n) * work.depth, work.m * work.n
    step = max(
        outputs * work.depth / work.element_size / rates.products,
        loaded * (rates.pointers if work.pointers else 1.0) / rates.l2,
        (work.m + work.n + work.rows_read) * work.depth / SHARED_BYTES,
    )
    main, ending = work.steps * step, 1.5 * outputs * work.element_size / rates.memory
    if work.splits > 1:
        ending += 4 * outputs * (1 + work.splits) / rates.l2
    tile = max(main, ending) if work.resident > 1 else main + ending
    return work.blocks * (tile + rates.start / work.resident)
