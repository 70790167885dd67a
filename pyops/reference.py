"""The oracle: conv2d -> batch_norm -> add -> activation in plain torch.

It imports nothing of ours and runs where neither Triton nor the built libraries can be loaded. Run it in fp64 for the
truth, in the tensors' own dtype for what eager gives. It is differentiable.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(seed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """fp32 in [0, 1), one an element: the upper 24 bits of the first word of Philox-4x32-10.

    counter = (index, offset) and key = seed, each 64 bits, low word first; index counts the elements of a contiguous
    tensor of this shape, whatever the strides of the tensor that the numbers are for.
    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    word = 0xFFFFFFFF
    index = torch.arange(torch.Size(shape).numel(), device=seed.device, dtype=torch.int64)
    key, offset = seed.unbind()
    c0, c1 = index & word, (index >> 32) & word
    c2, c3 = offset & word, (offset >> 32) & word
    k0, k1 = key & word, (key >> 32) & word
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # wrap modulo 2**64: both words stay right
        c0, c1, c2, c3 = ((b >> 32) & word) ^ c1 ^ k0, b & word, ((a >> 32) & word) ^ c3 ^ k1, a & word
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return ((c0 >> 8).to(torch.float32) * 2.0**-24).reshape(shape)


def activate(u: Tensor, slope_kind="number", slope_value=1.0, slope_upper=1.0, slope=None, seed=None) -> Tensor:
    """y = u where u > 0, else slope * u; the arguments are those of the primitives."""
    if slope_kind == "relu":
        return F.relu(u)
    if slope_kind == "number":
        return u if slope_value == 1.0 else F.leaky_relu(u, slope_value)
    if slope_kind == "tensor":
        return F.prelu(u, slope.to(u.dtype))
    drawn = slope_value + (slope_upper - slope_value) * uniform(seed, tuple(u.shape)).to(u.dtype)
    return torch.where(u > 0, u, drawn * u)


def finish(u: Tensor, residual: Tensor | None, residual_after_act: bool, *activation) -> Tensor:
    """act(u + residual), or act(u) + residual."""
    if residual is None:
        return activate(u, *activation)
    if residual_after_act:
        return activate(u, *activation) + residual
    return activate(u + residual, *activation)


def epilogue(
    z, mean, var, gamma, beta, eps, slope_kind, slope_value, slope_upper, slope, seed, residual, residual_after_act
) -> Tensor:
    """The primitive _epilogue; the arguments are those of its schema, in one dtype."""
    if mean is not None:
        u = F.batch_norm(z, mean, var, gamma, beta, eps=eps)
    else:
        u = z if beta is None else z + beta.view(-1, *(1,) * (z.dim() - 2))
    return finish(u, residual, residual_after_act, slope_kind, slope_value, slope_upper, slope, seed)


def conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *epilogue_arguments) -> Tensor:
    """The primitive _conv_epilogue; the arguments are those of its schema."""
    return epilogue(F.conv2d(input, weight, bias, stride, padding, dilation, groups), *epilogue_arguments)
