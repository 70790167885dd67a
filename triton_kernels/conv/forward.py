"""The convolution and its epilogue in one launch: an implicit GEMM and the epilogue on its fp32 accumulators."""

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..counters import arrive, counters
from ..epilogue import FUSION, draw_slope, uniforms
from ..epilogue import epilogue as apply_epilogue
from ..launch import Plan, check_device, launch
from ..vectors import epilogue_vectors, load_channels, load_vector
from . import configs
from .configs import Conv
from .main_loop import convolve, reduction_steps
from .problem import Descriptors, Problem, describe, to_layout
from .tiles import element_offset, load_tile, nchw_offset, pixels, store_tile

if TYPE_CHECKING:
    from ...core.spec import Epilogue, Spec


@triton.jit
def sum_splits(acc, partial_ptr, arrived_ptr, output_tile, split, splits, T: tl.constexpr):
    """True in the last program of an output tile, and there the sum of all splits, added in their order."""
    inside = tl.arange(0, T.m)[:, None] + tl.arange(0, T.n)[None, :] * T.m  # channels contiguous, as in an NHWC y
    first_ptr = partial_ptr + output_tile.to(tl.int64) * (splits * T.m * T.n)
    tl.store(first_ptr + split * (T.m * T.n) + inside, acc)
    last = arrive(arrived_ptr + output_tile, splits)
    if last:
        acc = tl.load(first_ptr + inside, cache_modifier=".cg")
        for other in tl.range(1, splits, num_stages=1):
            acc += tl.load(first_ptr + other * (T.m * T.n) + inside, cache_modifier=".cg")
    return last, acc


@triton.jit
def finish_tile(
    acc, residual, y, bias, scale, shift, slope, slope_upper, seed_ptr, sizes, group, first_m, tile,
    HAS_BN: tl.constexpr, SLOPE_KIND: tl.constexpr, RESIDUAL: tl.constexpr, L: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Applies the epilogue to a tile and stores it. bias is None or a column, as are scale, shift and slope."""
    m = first_m + tl.arange(0, T.m)
    image, row, column, pixel_mask = pixels(tile, sizes, T)
    mask = pixel_mask[None, :] & (m < L.out_channels)[:, None]
    channel, channels = (group * L.out_channels + m)[:, None], L.groups * L.out_channels
    offset = element_offset(image[None, :], row[None, :], column[None, :], channel, sizes[3], sizes[4], channels, T)
    addend = None
    if RESIDUAL != "none":
        addend = load_tile(residual, sizes, offset, mask, first_m, tile, T).to(tl.float32)
    if bias is not None:
        acc += bias
    if SLOPE_KIND == "random":
        index = nchw_offset(image[None, :], row[None, :], column[None, :], channel, sizes[3], sizes[4], channels)
        upper = tl.full([1, 1], slope_upper, tl.float32)
        uniform, _ = uniforms(tl.load(seed_ptr), tl.load(seed_ptr + 1), index)
        slope = draw_slope(uniform, slope, upper)
    if HAS_BN:
        result = apply_epilogue(acc, scale, shift, slope, addend, None, SLOPE_KIND, RESIDUAL)
    else:
        result = apply_epilogue(acc, None, None, slope, addend, None, SLOPE_KIND, RESIDUAL)
    store_tile(y, result, sizes, offset, mask, first_m, tile, T)


SIZES = ["batch", "height", "width", "out_height", "out_width", "splits", "pixel_tiles", "pixel_programs"]


@triton.jit(do_not_specialize=["slope_stride", *SIZES])  # values that change between calls must not recompile
def conv_epilogue_kernel(
    x, w, residual, y, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, seed_ptr, partial_ptr, arrived_ptr,
    eps: tl.float64, slope_value: tl.float64, slope_upper: tl.float64, slope_stride,
    batch, height, width, out_height, out_width, splits, pixel_tiles, pixel_programs,
    SLOPE_KIND: tl.constexpr, RESIDUAL: tl.constexpr, L: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """y = epilogue(conv(x, w) + bias): a program takes one tile of channels, one split of the reduction, and every
    pixel_programs-th tile of pixels. x, w, residual and y are descriptors if T.box is given, else pointers; residual
    and the other pointers may be None.
    """
    sizes = (batch, height, width, out_height, out_width)
    channel_tiles = L.groups * tl.cdiv(L.out_channels, T.m)
    program = tl.program_id(0)
    first_m, group = program % channel_tiles // L.groups * T.m, program % L.groups
    split, tile = program // channel_tiles % splits, program // channel_tiles // splits
    m = first_m + tl.arange(0, T.m)
    channel, exists = group * L.out_channels + m, m < L.out_channels
    scale, shift, slope = load_channels(
        mean_ptr, var_ptr, gamma_ptr, beta_ptr, eps, slope_ptr, slope_value, slope_stride,
        channel, exists, 1, tl.float32,
    )  # fmt: skip
    bias = None
    if bias_ptr is not None:
        bias = load_vector(bias_ptr, 0.0, channel, exists, tl.float32)[:, None]
    split_steps = tl.cdiv(reduction_steps(L, T), splits)
    first = split * split_steps
    last_step = tl.minimum(first + split_steps, reduction_steps(L, T))
    while tile < pixel_tiles:
        acc = convolve(x, w, sizes, group, first_m, tile, first, last_step, L, T)
        last = True
        if T.split:
            output_tile = tile * channel_tiles + program % channel_tiles
            last, acc = sum_splits(acc, partial_ptr, arrived_ptr, output_tile, split, splits, T)
        if last:
            finish_tile(
                acc, residual, y, bias, scale, shift, slope, slope_upper, seed_ptr, sizes, group, first_m, tile,
                mean_ptr is not None or beta_ptr is not None, SLOPE_KIND, RESIDUAL, L, T,
            )  # fmt: skip
        tile += pixel_programs


def conv_epilogue(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: "Spec",
    epilogue: "Epilogue",
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    config: Conv | None = None,
    measured: Conv | None = None,
) -> Tensor:
    """y = act((conv2d(x, w) + b) * scale + shift (+ residual)) (+ residual)

    scale = gamma / sqrt(var + eps), shift = beta - mean * scale; without mean: scale = 1, shift = beta
    input: x: (N, C, H, W), weight: w: (C_out, C / groups, kH, kW) fp16 | bf16 | fp32. x and the residual are copied
    unless they have memory_format, w unless it is channels_last. epilogue: see pointwise.forward.epilogue; its dropout
    must be 0: a call that trains needs z, and y replaces it here.
    memory_format: of y. config: the tile config; if None, `measured` if it fits, else configs.conv_config's choice.
    Returns: y: (N, C_out, H', W'), accumulated in fp32 and rounded once.
    Raises: TypeError, ValueError if the tensors or the config are not as above; RuntimeError if input is not on CUDA.
    Source: docs of torch.nn.Conv2d; implicit GEMM: Chetlur et al. 2014 (arXiv:1410.0759).
    """
    if epilogue.dropout:
        raise ValueError(f"dropout: expected 0 in one launch with a convolution, got {epilogue.dropout}")
    x, w = to_layout(input, memory_format), to_layout(weight, torch.channels_last)
    residual, slope_kind = epilogue.residual, epilogue.slope_kind
    residual = None if residual is None else to_layout(residual, memory_format)
    problem = describe(x, w, spec, memory_format, residual, "random" if slope_kind == "random" else "fixed")
    y = torch.empty_strided(problem.size, problem.strides, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    check_device("input", x, conv_epilogue_kernel)
    place = epilogue.residual_place
    plan, descriptors, workspace = conv_plan(conv_epilogue_kernel, problem, config, measured, slope_kind, place)
    vectors, slope_stride = epilogue_vectors(epilogue)
    partial, arrived = (None, None) if workspace is None else workspace.allocate(x.device)
    tensors = None if bias is None else bias.contiguous(), *vectors, partial, arrived
    scalars = epilogue.eps, epilogue.slope_value, epilogue.slope_upper, slope_stride
    if descriptors is None:
        launch(plan, x.device, (x, w, residual, y, *tensors), scalars)
    else:
        launch(plan, x.device, tensors, scalars, descriptors.of(x, w, residual, y))
    return y


@lru_cache(maxsize=4096)
def conv_plan(
    kernel, problem: Problem, config: Conv | None, measured: Conv | None, slope_kind: str, residual: str
) -> tuple[Plan, Descriptors | None, "Workspace | None"]:
    """The launch plan of a problem. Raises ValueError if the config does not fit it."""
    config = problem.config(config, measured)
    tile = problem.tile(config)
    channel_tiles, pixel_tiles, _ = configs.conv_grid(problem.key, config)
    pixel_programs = configs.pixel_programs(problem.key, config)
    plan = Plan(
        kernel, channel_tiles * config.splits * pixel_programs,
        (*problem.sizes, config.splits, pixel_tiles, pixel_programs),
        {
            "SLOPE_KIND": slope_kind, "RESIDUAL": residual, "L": problem.layer, "T": tile,
            **configs.conv_options(config), "enable_fp_fusion": FUSION,
        },
    )  # fmt: skip
    tiles = channel_tiles * pixel_tiles
    workspace = Workspace(tiles * config.splits * config.block_m * config.block_n, tiles) if config.splits > 1 else None
    return plan, problem.descriptors(tile), workspace


class Workspace(NamedTuple):
    """Sizes of the split-K workspace: raw fp32 accumulators of every split, and an arrival counter per output tile."""

    partial: int
    arrived: int

    def allocate(self, device: torch.device) -> tuple[Tensor, Tensor]:
        partial = torch.empty(self.partial, dtype=torch.float32, device=device)  # not torch's default dtype
        return partial, counters(device, self.arrived)
