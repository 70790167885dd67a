"""Launch plans of the reductions: tiles of channels, splits of their steps, and the workspace of partial results."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from ..counters import counters
from ..launch import Plan, chip, needs_int64
from .configs import REDUCTION_PROGRAMS, REDUCTION_STEPS, Pointwise, PointwiseKey, pointwise_config, reduction_options
from .operands import View, tiling

SIZES = ["rows", "col_groups", "channels", "pixels", "tiles", "steps", "splits"]  # the sizes of a plan, in this order


class Grid(NamedTuple):
    """Tiles of channels, steps of a tile over the other axis, and programs that split the steps: see reduction.py."""

    tiles: int
    steps: int
    splits: int


def grid(key: PointwiseKey, channels: int, config: Pointwise, multiprocessors: int) -> Grid:
    """The grid that fills the multiprocessors. In "nchw" a tile's rows are channels of one image."""
    tiles, steps = cdiv(key.cols, config.block_cols), cdiv(key.rows, config.block_rows)
    if key.layout == "nchw":
        tiles, steps = cdiv(channels, config.block_rows), key.rows // channels * tiles
    splits = min(cdiv(steps, REDUCTION_STEPS), max(1, REDUCTION_PROGRAMS * multiprocessors // tiles))
    return Grid(tiles, steps, cdiv(steps, cdiv(steps, splits)))


@lru_cache(maxsize=4096)
def reduction_plan(kernel, z: View, device: torch.device, **constants) -> Plan:
    """The plan of a kernel that reduces z to its channels. constants: the kernel's own constexprs."""
    key, channels = z.key, z.channels
    config = pointwise_config(key._replace(rows=channels) if key.layout == "nchw" else key)
    launch_constants = tiling(key, config, z.dtype)
    launch_grid = grid(key, channels, config, chip(device)[1])
    sizes = (key.rows, key.cols // launch_constants["GROUP"], channels, z.pixels, *launch_grid)
    options = reduction_options(config, z.dtype.itemsize, needs_int64(key.rows * key.cols))
    programs = launch_grid.tiles * launch_grid.splits
    return Plan(kernel, programs, sizes, {**constants, **launch_constants, **options})


def workspace(plan: Plan, out: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the partial results, three values per channel or slot, and the arrival counters."""
    _, _, channels, pixels, tiles, _, splits = plan.sizes
    flat = plan.constants["LAYOUT"] == "nchw_flat"
    slots = tiles * (plan.constants["BLOCK_COLS"] // pixels + 2) if flat else channels
    partial = torch.empty((3, splits, slots), dtype=out.dtype, device=out.device)
    return partial, counters(out.device, 1 if flat else tiles)
