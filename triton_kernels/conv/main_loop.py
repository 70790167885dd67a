"""Main loops of the convolution: fp32 accumulation of weights times inputs, by MMA or per channel if depthwise."""

import triton
import triton.language as tl

from .tiles import box_origin, element_offset, pixels


@triton.jit
def reduction_steps(L: tl.constexpr, T: tl.constexpr):
    """Number of steps along K."""
    taps: tl.constexpr = L.kernel[0] * L.kernel[1]
    if L.multiplier > 0:
        return taps
    elif T.flat_k:
        return tl.cdiv(taps * L.in_channels, T.k)
    else:
        return taps * tl.cdiv(L.in_channels, T.k)


@triton.jit
def load_box(x, image, row, column, tap, channel, L: tl.constexpr, T: tl.constexpr):
    """The tile (n, k) of x through its descriptor, which for stride 2 describes the view (N, H / 2, 2, W / 2, 2 C)."""
    down = tap // L.kernel[1] * L.dilation[0] - L.padding[0]
    right = tap % L.kernel[1] * L.dilation[1] - L.padding[1]
    if L.stride[0] == 2:
        origin = [image, row + (down >> 1), down & 1, column + (right >> 1), (right & 1) * L.in_channels + channel]
    else:
        origin = [image, row + down, column + right, channel]
    return tl.reshape(x.load(origin), [T.n, T.k])


@triton.jit
def load_pointers(
    x, sizes, image, row, column, pixel_mask, group, tap, channel, channel_mask, L: tl.constexpr, T: tl.constexpr
):  # fmt: skip
    """The tile (n, k) of x through pointers; tap is a scalar, or a block with the tap of each of the k entries.

    Pixels outside x get the address of the first pixel: the compiler turns a masked load into an asynchronous copy, and
    that may access its address all the same (pytorch/pytorch#187081).
    """
    row = row[:, None] * L.stride[0] - L.padding[0] + tap // L.kernel[1] * L.dilation[0]
    column = column[:, None] * L.stride[1] - L.padding[1] + tap % L.kernel[1] * L.dilation[1]
    inside = (row >= 0) & (row < sizes[1]) & (column >= 0) & (column < sizes[2]) & pixel_mask[:, None]
    channel, channels = (group * L.in_channels + channel[None, :]).to(T.offset), L.groups * L.in_channels
    pixel = tl.where(inside, element_offset(image[:, None], row, column, 0, sizes[1], sizes[2], channels, T), 0)
    offset = pixel + element_offset(0, 0, 0, channel, sizes[1], sizes[2], channels, T)
    return tl.load(x + offset, mask=inside & channel_mask[None, :], other=0.0)


@triton.jit
def step_channels(step, L: tl.constexpr, T: tl.constexpr):
    """The tap of a step, its channels, and the mask of those that exist; masked channels are 0, a valid address."""
    channel_steps: tl.constexpr = (L.in_channels + T.k - 1) // T.k
    tap, channel = step // channel_steps, step % channel_steps * T.k + tl.arange(0, T.k)
    valid = channel < L.in_channels
    if L.in_channels % T.k != 0:
        channel = tl.where(valid, channel, 0)
        if L.in_channels % 8 == 0:  # tl.where hides this; the hint keeps vector loads whole
            channel = tl.max_contiguous(tl.multiple_of(channel, 8), 8)
    return tap, channel, valid


@triton.jit
def convolve(x, w, sizes, group, first_m, tile, first, last, L: tl.constexpr, T: tl.constexpr):
    """The fp32 accumulators (m, n) of the steps [first, last)."""
    if L.multiplier > 0:
        return convolve_depthwise(x, w, sizes, first_m, tile, first, last, L, T)
    else:
        return implicit_gemm(x, w, sizes, group, first_m, tile, first, last, L, T)


@triton.jit
def convolve_depthwise(x, w, sizes, first_m, tile, first, last, L: tl.constexpr, T: tl.constexpr):
    """The main loop of a depthwise convolution: one tap per step."""
    taps: tl.constexpr = L.kernel[0] * L.kernel[1]
    m = (first_m + tl.arange(0, T.m))[:, None]
    image, row, column, pixel_mask = pixels(tile, sizes, T)
    row, column = row[None, :] * L.stride[0] - L.padding[0], column[None, :] * L.stride[1] - L.padding[1]
    exists = pixel_mask[None, :] & (m < L.out_channels)
    acc = tl.full([T.m, T.n], 0.0, tl.float32)
    for tap in range(first, last):
        down, right = row + tap // L.kernel[1] * L.dilation[0], column + tap % L.kernel[1] * L.dilation[1]
        inside = exists & (down >= 0) & (down < sizes[1]) & (right >= 0) & (right < sizes[2])
        channels: tl.constexpr = L.out_channels // L.multiplier
        offset = element_offset(image[None, :], down, right, m // L.multiplier, sizes[1], sizes[2], channels, T)
        a = tl.load(w + m * taps + tap, mask=m < L.out_channels, other=0.0).to(tl.float32)
        acc = tl.fma(a, tl.load(x + offset, mask=inside, other=0.0).to(tl.float32), acc)
    return acc


@triton.jit
def implicit_gemm(x, w, sizes, group, first_m, tile, first, last, L: tl.constexpr, T: tl.constexpr):
    """The main loop of a dense or grouped convolution: one tl.dot per step."""
    channel_steps: tl.constexpr = (L.in_channels + T.k - 1) // T.k
    depth: tl.constexpr = L.kernel[0] * L.kernel[1] * L.in_channels
    m = first_m + tl.arange(0, T.m)
    exists = m < L.out_channels
    weights = (group * L.out_channels + tl.where(exists, m, 0)).to(T.offset)[:, None] * depth
    image, row, column, pixel_mask = pixels(tile, sizes, T)
    acc = tl.full([T.m, T.n], 0.0, tl.float32)
    for step in range(first, last):
        if T.box is not None:
            first_image, first_row, first_column = box_origin(tile, sizes, T)
            tap, channel = step // channel_steps, step % channel_steps * T.k
            a = w.load([first_m, tap * L.in_channels + channel])
            b = load_box(x, first_image, first_row, first_column, tap, channel, L, T)
        else:
            if T.flat_k:
                k = step * T.k + tl.arange(0, T.k)
                valid = k < depth
                k = tl.where(valid, k, 0)
                tap, channel = (k // L.in_channels)[None, :], k % L.in_channels
            else:
                tap, channel, valid = step_channels(step, L, T)
                k = tap * L.in_channels + channel
            a = tl.load(w + weights + k[None, :], mask=exists[:, None] & valid[None, :], other=0.0)
            b = load_pointers(x, sizes, image, row, column, pixel_mask, group, tap, channel, valid, L, T)
        acc = tl.dot(a, tl.trans(b), acc, input_precision=T.precision)
    return acc
