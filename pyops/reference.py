"""The oracle: conv2d -> batch_norm -> add -> activation in plain torch.

It imports nothing of ours and runs where neither Triton nor the built libraries can be loaded. Run it in fp64 for the
truth, in the tensors' own dtype for what eager gives. It is differentiable.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(seed: Tensor, shape: tuple[int, ...], word: int = 0) -> Tensor:
    """fp32 in [0, 1), one an element: the upper 24 bits of a word, the first or the second, of Philox-4x32-10.

    counter = (index, offset) and key = seed, each 64 bits, low word first; index counts the elements of a contiguous
    tensor of this shape, whatever the strides of the tensor that the numbers are for. Slopes take word 0, dropout 1.
    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    mask = 0xFFFFFFFF
    index = torch.arange(torch.Size(shape).numel(), device=seed.device, dtype=torch.int64)
    key, offset = seed.unbind()
    c0, c1 = index & mask, (index >> 32) & mask
    c2, c3 = offset & mask, (offset >> 32) & mask
    k0, k1 = key & mask, (key >> 32) & mask
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # wrap modulo 2**64: both words stay right
        c0, c1, c2, c3 = ((b >> 32) & mask) ^ c1 ^ k0, b & mask, ((a >> 32) & mask) ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return (((c0, c1)[word] >> 8).to(torch.float32) * 2.0**-24).reshape(shape)


def draw(u: Tensor, slope_value: float, slope_upper: float, seed: Tensor) -> Tensor:
    """A slope in [slope_value, slope_upper] for each element of u."""
    return slope_value + (slope_upper - slope_value) * uniform(seed, tuple(u.shape)).to(u.dtype)


def keep(y: Tensor, dropout: float, seed: Tensor | None) -> Tensor | float:
    """What dropout multiplies each element of y with: 0 with this probability, else 1 / (1 - dropout)."""
    if not dropout:
        return 1.0
    assert seed is not None
    kept = uniform(seed, tuple(y.shape), 1) >= dropout
    return kept.to(y.dtype) * (1 / (1 - dropout) if dropout < 1 else 0.0)


def activate(u: Tensor, slope_kind="number", slope_value=1.0, slope_upper=1.0, slope=None, seed=None) -> Tensor:
    """y = u where u > 0, else slope * u; the arguments are those of the primitives."""
    if slope_kind == "relu":
        return F.relu(u)
    if slope_kind == "number":
        return u if slope_value == 1.0 else F.leaky_relu(u, slope_value)
    if slope_kind == "tensor":
        return F.prelu(u, slope.to(u.dtype))
    return torch.where(u > 0, u, draw(u, slope_value, slope_upper, seed) * u)


def finish(u: Tensor, residual: Tensor | None, residual_after_act: bool, *activation) -> Tensor:
    """act(u + residual), or act(u) + residual."""
    if residual is None:
        return activate(u, *activation)
    if residual_after_act:
        return activate(u, *activation) + residual
    return activate(u + residual, *activation)


def normalise(z: Tensor, mean, var, gamma, beta, eps: float) -> Tensor:
    """u = (z - mean) / sqrt(var + eps) * gamma + beta; without a mean: z + beta."""
    if mean is not None:
        return F.batch_norm(z, mean, var, gamma, beta, eps=eps)
    return z if beta is None else z + beta.view(-1, *(1,) * (z.dim() - 2))


def epilogue(
    z, mean, var, gamma, beta, eps, slope_kind, slope_value, slope_upper, slope, seed, residual, residual_after_act,
    dropout=0.0,
) -> Tensor:  # fmt: skip
    """The primitive _epilogue; the arguments are those of its schema, in one dtype."""
    u = normalise(z, mean, var, gamma, beta, eps)
    y = finish(u, residual, residual_after_act, slope_kind, slope_value, slope_upper, slope, seed)
    return y * keep(y, dropout, seed) if dropout else y


def conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *epilogue_arguments) -> Tensor:
    """The primitive _conv_epilogue; the arguments are those of its schema."""
    return epilogue(F.conv2d(input, weight, bias, stride, padding, dilation, groups), *epilogue_arguments)


# Training. The gradients are written out, in two passes over the data, as the kernels compute them; the tests hold them
# against what autograd makes of `epilogue`.


def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """The primitive _statistics: mean and biased variance of each channel, z (N, C, ...)."""
    values = z.transpose(0, 1).flatten(1)
    mean = values.mean(1)
    mean = mean + (values - mean[:, None]).mean(1)  # exact where all values are the same
    return mean, (values - mean[:, None]).square().mean(1)


def slopes_at(u: Tensor, slope_kind, slope_value, slope_upper, slope, seed) -> Tensor:
    """dact(u)/du: 1 where u > 0, else the slope, at 0 too. ReLU passes NaN on, as torch's own gradient does."""
    if slope_kind == "relu":
        return torch.where(u <= 0, 0.0, 1.0).to(u.dtype)
    if slope_kind == "tensor":
        slope = slope.to(u.dtype).view(-1, *(1,) * (u.dim() - 2))
    elif slope_kind == "random":
        slope = draw(u, slope_value, slope_upper, seed)
    else:
        slope = slope_value
    return torch.where(u > 0, torch.ones_like(u), slope)


def gradient(grad, z, mean, var, gamma, beta, eps, slope_kind, slope_value, slope_upper, slope, seed, residual,
             residual_after_act, dropout=0.0) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of the value behind the activation and of u before it, and u."""
    u = normalise(z, mean, var, gamma, beta, eps)
    if residual is not None and not residual_after_act:
        u = u + residual
    dy = grad * keep(grad, dropout, seed)
    return dy, dy * slopes_at(u, slope_kind, slope_value, slope_upper, slope, seed), u


def deviation(z: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(z - mean) / sqrt(var + eps), and the factor 1 / sqrt(var + eps)."""
    shape = (-1, *(1,) * (z.dim() - 2))
    factor = torch.rsqrt(var + eps).view(shape)
    return (z - mean.view(shape)) * factor, factor


def epilogue_reduce(grad: Tensor, z: Tensor, *arguments) -> Tensor:
    """The primitive _epilogue_reduce: (3, C), the sums for dbeta, dgamma and dslope (0 unless slope_kind is tensor).

    sum(du), sum(du * (z - mean) / sqrt(var + eps)), sum(dy * u where u <= 0); without a mean the second is 0.
    """
    mean, var, _, _, eps, slope_kind = arguments[:6]
    dy, du, u = gradient(grad, z, *arguments)
    axes = [0, *range(2, z.dim())]
    zero = torch.zeros_like(du)
    weighted = zero if mean is None else du * deviation(z, mean, var, eps)[0]
    slopes = torch.where(u > 0, zero, dy * u) if slope_kind == "tensor" else zero
    return torch.stack([part.sum(axes) for part in (du, weighted, slopes)])


def epilogue_backward(
    grad: Tensor, z: Tensor, means: Tensor | None, need_z: bool, need_residual: bool, *arguments
) -> tuple[Tensor, Tensor]:
    """The primitive _epilogue_backward: dz and, of a residual before the activation, its gradient du.

    dz = gamma / sqrt(var + eps) * (du - means[0] - (z - mean) / sqrt(var + eps) * means[1]), where mean and var are the
    batch's and means the first two sums of `epilogue_reduce` by the number of values; without means: a constant
    BatchNorm. What is not needed is empty.
    """
    mean, var, gamma, _, eps = arguments[:5]
    _, du, _ = gradient(grad, z, *arguments)
    shape = (-1, *(1,) * (z.dim() - 2))
    dz = du
    if mean is not None:
        deviated, factor = deviation(z, mean, var, eps)
        if means is not None:
            dz = du - means[0].view(shape) - deviated * means[1].view(shape)
        dz = dz * (factor if gamma is None else factor * gamma.view(shape))
    nothing = z.new_empty(0)
    return dz if need_z else nothing, du if need_residual else nothing
