"""GPU constants of the cost models, parsed from gpus.def, which documents its columns and their sources."""

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

SHARED_BYTES = 128  # bytes of shared memory per clock
INT32_ELEMENTS = 2**31 - 2**16  # from this size the offsets of a tile, masked lanes included, need 64 bits
REGISTERS = 65536  # per multiprocessor


class Gpu(NamedTuple):
    """One line of gpus.def; asynchronous is its column `async`."""

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
    """The chip's line; for a chip that is not listed, the newest one that is not newer."""
    return GPUS[max((known for known in GPUS if known <= chip), default=min(GPUS))]


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
