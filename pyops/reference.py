"""The oracle: conv2d -> batch_norm -> add -> activation in plain torch.

It imports torch alone, so it runs where neither Triton nor the built libraries can be loaded. Inputs in fp64 give the
exact result, inputs in their own dtype the result of eager. It is differentiable. An Epilogue's tensors have the dtype
of z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .core.spec import Epilogue, Spec


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


def draw(u: Tensor, e: Epilogue) -> Tensor:
    """Returns a random slope in [slope_value, slope_upper] for each element of u."""
    assert e.seed is not None
    return e.slope_value + (e.slope_upper - e.slope_value) * uniform(e.seed, tuple(u.shape)).to(u.dtype)


def keep(y: Tensor, dropout: float, seed: Tensor | None) -> Tensor | float:
    """Returns the dropout factor of each element: 0 with probability `dropout`, else 1 / (1 - dropout)."""
    if not dropout:
        return 1.0
    assert seed is not None
    kept = uniform(seed, tuple(y.shape), 1) >= dropout
    return kept.to(y.dtype) * (1 / (1 - dropout) if dropout < 1 else 0.0)


def activate(u: Tensor, e: Epilogue) -> Tensor:
    """y = u where u > 0, else slope * u."""
    if e.slope_kind == "relu":
        return F.relu(u)
    if e.slope_kind == "number":
        return u if e.slope_value == 1.0 else F.leaky_relu(u, e.slope_value)
    if e.slope is not None and e.slope_kind == "tensor":
        return F.prelu(u, e.slope.to(u.dtype))
    if e.seed is None:  # torch's generator draws
        return F.rrelu(u, e.slope_value, e.slope_upper, training=True)
    return torch.where(u <= 0, draw(u, e) * u, u)  # u where it is NaN, with a gradient of 1, as torch


def normalize(z: Tensor, e: Epilogue) -> Tensor:
    """(z - mean) / sqrt(var + eps) * gamma + beta; without a mean: z + beta."""
    if e.mean is not None:
        return F.batch_norm(z, e.mean, e.var, e.gamma, e.beta, eps=e.eps)
    return z if e.beta is None else z + per_channel(e.beta, z)


def per_channel(vector: Tensor, z: Tensor) -> Tensor:
    """Returns a vector of one value, or one per channel, in a shape that broadcasts to z, (N, C, ...)."""
    return vector.view(-1, *(1,) * (z.dim() - 2))


def finish(u: Tensor, e: Epilogue) -> Tensor:
    """y = act(u + residual), or act(u) + residual, before dropout."""
    if e.residual is None:
        return activate(u, e)
    if e.residual_after_act:
        return activate(u, e) + e.residual
    return activate(u + e.residual, e)


def epilogue(z: Tensor, e: Epilogue) -> Tensor:
    """The primitive _epilogue. Without a seed, random slopes and dropout are torch's own."""
    y = finish(normalize(z, e), e)
    if e.dropout and e.seed is None:
        return F.dropout(y, e.dropout)
    return y * keep(y, e.dropout, e.seed) if e.dropout else y


def conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, e: Epilogue) -> Tensor:
    """The primitive _conv_epilogue."""
    return epilogue(F.conv2d(input, weight, bias, *spec), e)


# Training. The gradients are written out in two passes over the data, as the kernels compute them; the tests compare
# them with autograd's gradients of `epilogue`.


def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """The primitive _statistics: mean and biased variance of each channel of z, (N, C, ...)."""
    values = z.transpose(0, 1).flatten(1)
    mean = values.mean(1)
    correction = (values - mean[:, None]).mean(1)  # the mean of equal values is then exact
    mean = torch.where(mean.isfinite(), mean + correction, mean)
    return mean, (values - mean[:, None]).square().mean(1)


def slopes_at(u: Tensor, e: Epilogue) -> Tensor:
    """dact(u)/du: 1 where u > 0, else the slope (also at u = 0). For a NaN u ReLU and RReLU give 1, as in torch."""
    if e.slope_kind == "relu":
        return torch.where(u <= 0, 0.0, 1.0).to(u.dtype)
    if e.slope_kind == "random":
        return torch.where(u <= 0, draw(u, e), torch.ones_like(u))
    slope: Tensor | float = e.slope_value
    if e.slope is not None and e.slope_kind == "tensor":
        slope = per_channel(e.slope.to(u.dtype), u)
    return torch.where(u > 0, torch.ones_like(u), slope)


def gradient(grad: Tensor, z: Tensor, e: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dy, the gradient of the activation's output; du, that of its input; and its input u."""
    u = normalize(z, e)
    if e.residual is not None and not e.residual_after_act:
        u = u + e.residual
    dy = grad * keep(grad, e.dropout, e.seed)
    return dy, dy * slopes_at(u, e), u


def deviation(z: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns (z - mean) / sqrt(var + eps) and 1 / sqrt(var + eps)."""
    factor = per_channel(torch.rsqrt(var + eps), z)
    return (z - per_channel(mean, z)) * factor, factor


def epilogue_reduce(grad: Tensor, z: Tensor, e: Epilogue) -> Tensor:
    """The primitive _epilogue_reduce: (3, C), the per-channel sums dbeta, dgamma and dslope.

    dbeta = sum(du), dgamma = sum(du * (z - mean) / sqrt(var + eps)), dslope = sum(dy * u where u <= 0). dgamma is 0
    without a mean, dslope unless slope_kind is "tensor".
    """
    dy, du, u = gradient(grad, z, e)
    axes = [0, *range(2, z.dim())]
    zero = torch.zeros_like(du)
    weighted = zero if e.mean is None or e.var is None else du * deviation(z, e.mean, e.var, e.eps)[0]
    slopes = torch.where(u > 0, zero, dy * u) if e.slope_kind == "tensor" else zero
    return torch.stack([part.sum(axes) for part in (du, weighted, slopes)])


def epilogue_backward(
    grad: Tensor, z: Tensor, means: Tensor | None, need_z: bool, need_residual: bool, e: Epilogue
) -> tuple[Tensor, Tensor]:
    """The primitive _epilogue_backward: dz, and du, the gradient of a residual that is added before the activation.

    dz = gamma / sqrt(var + eps) * (du - means[0] - (z - mean) / sqrt(var + eps) * means[1]), where mean and var are
    those of the batch and means are the first two sums of `epilogue_reduce` divided by the number of values. means is
    None: mean and var are constants. An output that is not needed is empty.
    """
    _, du, _ = gradient(grad, z, e)
    dz = du
    if e.mean is not None and e.var is not None:
        normalized, factor = deviation(z, e.mean, e.var, e.eps)
        if means is not None:
            dz = du - per_channel(means[0], z) - normalized * per_channel(means[1], z)
        dz = dz * (factor if e.gamma is None else factor * per_channel(e.gamma, z))
    empty = z.new_empty(0)
    return dz if need_z else empty, du if need_residual else empty


def vector_gradients(sums: Tensor, e: Epilogue) -> list[Tensor | None]:
    """dgamma, dbeta and dslope from the sums of `epilogue_reduce`, each like its vector, None for an absent one.

    A shared slope adds up the channels.
    """
    slope = e.slope if e.slope_kind == "tensor" else None
    pairs = zip((e.gamma, e.beta, slope), (sums[1], sums[0], sums[2]))
    return [
        v if v is None else (s if v.shape == s.shape else s.sum().reshape(v.shape)).to(v.dtype, copy=True)
        for v, s in pairs
    ]


def epilogue_gradients(
    grad: Tensor, z: Tensor, batch_stats: bool, need_z: bool, need_residual: bool, need_vectors: bool, e: Epilogue
) -> tuple[Tensor, ...]:
    """The primitive _epilogue_gradients: dz, du, dgamma, dbeta, dslope.

    batch_stats: mean and var are those of z. A gradient that is not needed, or of an absent vector, is empty.
    """
    sums = epilogue_reduce(grad, z, e)
    means = sums[:2] / (z.numel() // z.shape[1]) if batch_stats else None
    dz, du = epilogue_backward(grad, z, means, need_z, need_residual, e)
    vectors = vector_gradients(sums, e) if need_vectors else [None] * 3
    return dz, du, *(z.new_empty(0) if v is None else v for v in vectors)
