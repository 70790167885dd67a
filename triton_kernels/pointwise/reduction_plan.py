"""How a reduction is launched: its tiles, the programs that share one, the workspace for what they leave."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from ..counters import counters
from ..launch import Plan, chip, wide
from .configs import REDUCTION_PROGRAMS, REDUCTION_STEPS, Pointwise, PointwiseKey, pointwise_config, reduction_options
from .operands import View, tiling

SIZES = ["rows", "col_groups", "channels", "pixels", "tiles", "steps", "shares"]  # what `plan` gives, in this order


class Grid(NamedTuple):
    """Tiles of channels, the steps that each takes over all else, the programs that share them. See reduction.py."""

    tiles: int
    steps: int
    shares: int


def grid(key: PointwiseKey, channels: int, config: Pointwise, multiprocessors: int) -> Grid:
    """key: its rows are the channels where the layout is "planes", for a tile has rows of one image."""
    tiles, steps = cdiv(key.cols, config.block_cols), cdiv(key.rows, config.block_rows)
    if key.layout == "planes":
        tiles, steps = cdiv(channels, config.block_rows), key.rows // channels * tiles
    shares = min(cdiv(steps, REDUCTION_STEPS), max(1, REDUCTION_PROGRAMS * multiprocessors // tiles))
    return Grid(tiles, steps, cdiv(steps, cdiv(steps, shares)))


@lru_cache(maxsize=4096)
def reduction_plan(kernel, z: View, device: torch.device, **constants) -> Plan:
    """How a kernel that sums over all but the channels is launched. constants: those that say what it sums."""
    key, channels = z.key, z.channels
    config = pointwise_config(key._replace(rows=channels) if key.layout == "planes" else key)
    tiles = tiling(key, config, z.dtype)
    found = grid(key, channels, config, chip(device)[1])
    sizes = (key.rows, key.cols // tiles["GROUP"], channels, z.pixels, *found)
    options = reduction_options(config, z.dtype.itemsize, wide(key.rows * key.cols))
    return Plan(kernel, found.tiles * found.shares, sizes, {**constants, **tiles, **options})


def workspace(plan: Plan, out: Tensor) -> tuple[Tensor, Tensor]:
    """What the programs leave, three numbers a channel or slot, and how many of them have arrived."""
    _, _, channels, pixels, tiles, _, shares = plan.sizes
    flat = plan.constants["LAYOUT"] == "flat"
    places = tiles * (plan.constants["BLOCK_COLS"] // pixels + 2) if flat else channels
    partial = torch.empty((3, shares, places), dtype=out.dtype, device=out.device)
    return partial, counters(out.device, 1 if flat else tiles)
