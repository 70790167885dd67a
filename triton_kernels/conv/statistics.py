"""The convolution and the batch statistics of its output in one launch, for a BatchNorm in training mode.

Each program accumulates mean and M2 (see welford.py) over its tiles; the last program of a tile of channels combines
those of all programs in their order. Nothing is added atomically: the same call gives the same bits.
"""

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..counters import arrive, counters
from ..epilogue import FUSION
from ..launch import Plan, check_device, launch
from ..vectors import load_vector
from ..welford import combine, merge, variance
from . import configs
from .configs import Conv
from .main_loop import convolve, reduction_steps
from .problem import Descriptors, Problem, describe, to_layout
from .tiles import element_offset, pixels, store_tile

if TYPE_CHECKING:
    from ...core.spec import Spec


@triton.jit
def combine_programs(partial_ptr, mean_ptr, var_ptr, channel, exists, channels, programs):
    """Stores mean and variance of the channels, combined from those of the programs in their order."""
    count = channel.to(tl.float32) * 0  # zeros of the channels' shape
    mean, m2 = count, count
    for program in tl.range(0, programs, num_stages=1):
        ptr = partial_ptr + program * (3 * channels) + channel
        other_count = tl.load(ptr, mask=exists, other=0.0, cache_modifier=".cg")
        other_mean = tl.load(ptr + channels, mask=exists, other=0.0, cache_modifier=".cg")
        other_m2 = tl.load(ptr + 2 * channels, mask=exists, other=0.0, cache_modifier=".cg")
        count, mean, m2 = combine(count, mean, m2, other_count, other_mean, other_m2)
    tl.store(mean_ptr + channel, mean, mask=exists)
    tl.store(var_ptr + channel, variance(count, m2), mask=exists)


@triton.jit(do_not_specialize=["batch", "height", "width", "out_height", "out_width", "pixel_tiles", "pixel_programs"])
def conv_statistics_kernel(
    x, w, z, bias_ptr, partial_ptr, arrived_ptr, mean_ptr, var_ptr,
    batch, height, width, out_height, out_width, pixel_tiles, pixel_programs, L: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """z = conv(x, w) + bias; a program takes one tile of channels and every pixel_programs-th tile of pixels."""
    sizes = (batch, height, width, out_height, out_width)
    channel_tiles = L.groups * tl.cdiv(L.out_channels, T.m)
    program = tl.program_id(0)
    first_m, group = program % channel_tiles // L.groups * T.m, program % L.groups
    m = first_m + tl.arange(0, T.m)
    channel, exists, channels = group * L.out_channels + m, m < L.out_channels, L.groups * L.out_channels
    bias = load_vector(bias_ptr, 0.0, channel, exists, tl.float32)[:, None]
    count = tl.full([T.m], 0.0, tl.float32)
    mean, m2 = count, count
    tile = program // channel_tiles
    while tile < pixel_tiles:
        acc = convolve(x, w, sizes, group, first_m, tile, 0, reduction_steps(L, T), L, T)
        if bias_ptr is not None:
            acc += bias
        value = acc.to(z.dtype if T.box is not None else z.dtype.element_ty)
        image, row, column, pixel_mask = pixels(tile, sizes, T)
        mask = pixel_mask[None, :] & exists[:, None]
        offset = element_offset(
            image[None, :], row[None, :], column[None, :], channel[:, None], out_height, out_width, channels, T
        )
        store_tile(z, value, sizes, offset, mask, first_m, tile, T)
        tile_count, tile_mean, tile_m2 = merge(mask.to(tl.float32), value.to(tl.float32), 0.0, 1)
        count, mean, m2 = combine(count, mean, m2, tile_count, tile_mean, tile_m2)
        tile += pixel_programs
    ptr = partial_ptr + program // channel_tiles * (3 * channels) + channel
    tl.store(ptr, count, mask=exists)
    tl.store(ptr + channels, mean, mask=exists)
    tl.store(ptr + 2 * channels, m2, mask=exists)
    if arrive(arrived_ptr + program % channel_tiles, pixel_programs):
        combine_programs(partial_ptr, mean_ptr, var_ptr, channel, exists, channels, pixel_programs)


def conv_statistics(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: "Spec",
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    config: Conv | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """z = conv2d(x, w) + b; mean = sum(z) / n, var = sum((z - mean)^2) / n of z as it is stored, n values per channel

    The arguments are those of forward.conv_epilogue.
    Returns: z: (N, C_out, H', W'); mean, var: (C_out,) fp32, over N, H' and W'; zeros if z is empty.
    Raises: as forward.conv_epilogue.
    Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance (1983); biased as torch.nn.BatchNorm2d
        normalizes with it.
    """
    x, w = to_layout(input, memory_format), to_layout(weight, torch.channels_last)
    problem = describe(x, w, spec, memory_format, epilogue="statistics")
    z, channels = torch.empty_strided(problem.size, problem.strides, dtype=x.dtype, device=x.device), problem.size[1]
    empty = partial(torch.empty, dtype=torch.float32, device=z.device)
    mean, var = empty(channels), empty(channels)  # an operator's results must not share memory
    if z.numel() == 0:
        return z, mean.zero_(), var.zero_()
    check_device("input", x, conv_statistics_kernel)
    plan, descriptors, programs, channel_tiles = statistics_plan(conv_statistics_kernel, problem, config)
    partials = empty(programs, 3, channels)
    arrived = counters(z.device, channel_tiles)
    tensors = None if bias is None else bias.contiguous(), partials, arrived, mean, var
    if descriptors is None:
        launch(plan, z.device, (x, w, z, *tensors))
    else:
        launch(plan, z.device, tensors, descriptors=descriptors.of(x, w, z))
    return z, mean, var


@lru_cache(maxsize=4096)
def statistics_plan(kernel, problem: Problem, config: Conv | None) -> tuple[Plan, Descriptors | None, int, int]:
    """The launch plan of a problem, its descriptors, the programs per channel tile, and the channel tiles.

    Raises ValueError if the config does not fit the problem.
    """
    config = problem.config(config)
    tile = problem.tile(config)
    channel_tiles, pixel_tiles, _ = configs.conv_grid(problem.key, config)
    programs = configs.pixel_programs(problem.key, config)
    constants = {"L": problem.layer, "T": tile, **configs.conv_options(config), "enable_fp_fusion": FUSION}
    plan = Plan(kernel, channel_tiles * programs, (*problem.sizes, pixel_tiles, programs), constants)
    return plan, problem.descriptors(tile), programs, channel_tiles
