"""What the cost models know of each GPU, as gpus.def has it for Python and C++ alike: the columns, their sources."""

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

SHARED_BYTES = 128  # of shared memory, a clock
INT32_ELEMENTS = 2**31 - 2**16  # beyond it the offsets of a tile, masked lanes included, need 64 bits
REGISTERS = 65536  # of a multiprocessor


class Gpu(NamedTuple):
    """One line of gpus.def, which says what each column means; asynchronous: the column `async`."""

    chip: int
    mma: int
    asynchronous: int
    l2: float
    memory: float
    shared: int


def _read() -> dict[int, Gpu]:
    text = (Path(__file__).parent / "gpus.def").read_text()
    lines = re.findall(r"^GPU\(([\d\s,]+)\)", text, re.MULTILINE)
    return {gpu.chip: gpu for gpu in (Gpu(*map(int, line.split(","))) for line in lines)}


GPUS = _read()


@lru_cache
def gpu(chip: int) -> Gpu:
    """That of the chip; of one that the table does not have, the newest that is not newer."""
    return GPUS[max((known for known in GPUS if known <= chip), default=min(GPUS))]


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
