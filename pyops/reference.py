"""The oracle: conv2d -> batch_norm -> add -> activation in plain torch.

It imports torch alone, so it runs where neither Triton nor the built libraries can be loaded. Inputs in fp64 give the
exact result, inputs in their own dtype the result of eager. It is differentiable.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(seed: Tensor, shape: tuple[int, ...], word: int = 0) -> Tensor:
    """Returns one fp32 in [0, 1) per element: the upper 24 bits of word 0 or 1 of Philox-4x32-10.

    counter = (index, offset) and key = seed, each 64 bits, low word first. index is the position of the element in a
    contiguous tensor of this shape, whatever the strides. Random slopes use word 0, dropout word 1.
    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    mask = 0xFFFFFFFF
    index = torch.arange(torch.Size(shape).numel(), device=seed.device, dtype=torch.int64)
    key, offset = seed.unbind()
    c0, c1 = index & mask, (index >> 32) & mask
    c2, c3 = offset & mask, (offset >> 32) & mask
    k0, k1 = key & mask, (key >> 32) & mask
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # int64 wraps modulo 2**64: both 32-bit halves are exact
        c0, c1, c2, c3 = ((b >> 32) & mask) ^ c1 ^ k0, b & mask, ((a >> 32) & mask) ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return (((c0, c1)[word] >> 8).to(torch.float32) * 2.0**-24).reshape(shape)


def draw(u: Tensor, slope_value: float, slope_upper: float, seed: Tensor) -> Tensor:
    """Returns a random slope in [slope_value, slope_upper] for each element of u."""
    return slope_value + (slope_upper - slope_value) * uniform(seed, tuple(u.shape)).to(u.dtype)


def keep(y: Tensor, dropout: float, seed: Tensor | None) -> Tensor | float:
    """Returns the dropout factor of each element: 0 with probability `dropout`, else 1 / (1 - dropout)."""
    if not dropout:
        return 1.0
    assert seed is not None
    kept = uniform(seed, tuple(y.shape), 1) >= dropout
    return kept.to(y.dtype) * (1 / (1 - dropout) if dropout < 1 else 0.0)


def activate(u: Tensor, slope_kind="number", slope_value=1.0, slope_upper=1.0, slope=None, seed=None) -> Tensor:
    """y = u where u > 0, else slope * u, with the slope arguments of the primitives."""
    if slope_kind == "relu":
        return F.relu(u)
    if slope_kind == "number":
        return u if slope_value == 1.0 else F.leaky_relu(u, slope_value)
    if slope_kind == "tensor":
        return F.prelu(u, slope.to(u.dtype))
    return torch.where(u > 0, u, draw(u, slope_value, slope_upper, seed) * u)


def finish(u: Tensor, residual: Tensor | None, residual_after_act: bool, *activation) -> Tensor:
    """y = act(u + residual), or act(u) + residual if residual_after_act."""
    if residual is None:
        return activate(u, *activation)
    if residual_after_act:
        return activate(u, *activation) + residual
    return activate(u + residual, *activation)


def normalize(z: Tensor, mean, var, gamma, beta, eps: float) -> Tensor:
    """u = (z - mean) / sqrt(var + eps) * gamma + beta; without a mean: z + beta."""
    if mean is not None:
        return F.batch_norm(z, mean, var, gamma, beta, eps=eps)
    return z if beta is None else z + beta.view(-1, *(1,) * (z.dim() - 2))


def epilogue(
    z, mean, var, gamma, beta, eps, slope_kind, slope_value, slope_upper, slope, seed, residual, residual_after_act,
    dropout=0.0,
) -> Tensor:  # fmt: skip
    """The primitive _epilogue, with the arguments of its schema in one dtype."""
    u = normalize(z, mean, var, gamma, beta, eps)
    y = finish(u, residual, residual_after_act, slope_kind, slope_value, slope_upper, slope, seed)
    return y * keep(y, dropout, seed) if dropout else y


def conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *epilogue_arguments) -> Tensor:
    """The primitive _conv_epilogue, with the arguments of its schema."""
    return epilogue(F.conv2d(input, weight, bias, stride, padding, dilation, groups), *epilogue_arguments)


# Training. The gradients are written out in two passes over the data, as the kernels compute them; the tests compare
# them with autograd's gradients of `epilogue`.


def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """The primitive _statistics: mean and biased variance of each channel of z, (N, C, ...)."""
    values = z.transpose(0, 1).flatten(1)
    mean = values.mean(1)
    mean = mean + (values - mean[:, None]).mean(1)  # exact if all values are equal
    return mean, (values - mean[:, None]).square().mean(1)


def slopes_at(u: Tensor, slope_kind, slope_value, slope_upper, slope, seed) -> Tensor:
    """dact(u)/du: 1 where u > 0, else the slope (also at u = 0). For a NaN u ReLU gives 1, as torch's gradient does."""
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
    """Returns dy, the gradient of the activation's output; du, that of its input; and its input u."""
    u = normalize(z, mean, var, gamma, beta, eps)
    if residual is not None and not residual_after_act:
        u = u + residual
    dy = grad * keep(grad, dropout, seed)
    return dy, dy * slopes_at(u, slope_kind, slope_value, slope_upper, slope, seed), u


def deviation(z: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns (z - mean) / sqrt(var + eps) and 1 / sqrt(var + eps)."""
    shape = (-1, *(1,) * (z.dim() - 2))
    factor = torch.rsqrt(var + eps).view(shape)
    return (z - mean.view(shape)) * factor, factor


def epilogue_reduce(grad: Tensor, z: Tensor, *arguments) -> Tensor:
    """The primitive _epilogue_reduce: (3, C), the per-channel sums dbeta, dgamma and dslope.

    dbeta = sum(du), dgamma = sum(du * (z - mean) / sqrt(var + eps)), dslope = sum(dy * u where u <= 0). dgamma is 0
    without a mean, dslope unless slope_kind is "tensor".
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
    """The primitive _epilogue_backward: dz, and du, the gradient of a residual that is added before the activation.

    dz = gamma / sqrt(var + eps) * (du - means[0] - (z - mean) / sqrt(var + eps) * means[1]), where mean and var are
    those of the batch and means are the first two sums of `epilogue_reduce` divided by the number of values. means is
    None: mean and var are constants. An output that is not needed is empty.
    """
    mean, var, gamma, _, eps = arguments[:5]
    _, du, _ = gradient(grad, z, *arguments)
    shape = (-1, *(1,) * (z.dim() - 2))
    dz = du
    if mean is not None:
        normalized, factor = deviation(z, mean, var, eps)
        if means is not None:
            dz = du - means[0].view(shape) - normalized * means[1].view(shape)
        dz = dz * (factor if gamma is None else factor * gamma.view(shape))
    empty = z.new_empty(0)
    return dz if need_z else empty, du if need_residual else empty
