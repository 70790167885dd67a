"""Calls of the Triton kernels without a convolution, and their checks against the oracle. It imports triton.

Forward: `arguments` and `check`. Training: `draw`, `means_of`, and a check for each of the three primitives.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import torch
from triton_cases import DEVICE, INTERPRETING, RESIDUALS, epilogue_magnitude

from atrous import reference
from atrous.core.spec import Epilogue, flat
from atrous.testing import assert_elements
from atrous.triton_kernels import launch
from atrous.triton_kernels.pointwise import backward as gradients
from atrous.triton_kernels.pointwise import forward as pointwise
from atrous.triton_kernels.pointwise import operands
from atrous.triton_kernels.pointwise import reduction_plan as reductions

DTYPES = (torch.float16, torch.float32, torch.float64) if INTERPRETING else operands.DTYPES
LAYOUTS = ("NCHW", "NHWC")
SLOPES = ("relu", "number", "tensor", "shared", "random")
SHAPES = {"nhwc": ((3, 5, 4, 5), "NHWC"), "nchw": ((3, 5, 4, 8), "NCHW"), "nchw_flat": ((3, 5, 7, 7), "NCHW")}


def variants(slopes):
    """(dtype, slope, residual): every combination. When compiled, fp16 and fp64, which only load, store and compute as
    bf16 and fp32 do, take one residual for each slope: a third of the kernels."""
    whole = DTYPES if INTERPRETING else (torch.bfloat16, torch.float32)
    return [
        (dtype, slope, residual)
        for dtype in DTYPES
        for i, slope in enumerate(slopes)
        for j, residual in enumerate(RESIDUALS)
        if dtype in whole or (i + j) % len(RESIDUALS) == 0
    ]


def arguments(
    shape, dtype, layout="NCHW", slope_kind="tensor", residual="before", norm=True, vectors=None, shared=False,
    dropout=0.0,
):  # fmt: skip
    """z and an epilogue: slopes below 0 and above 1, gammas of both signs."""
    place = {"device": DEVICE, "dtype": vectors or (torch.float64 if dtype == torch.float64 else torch.float32)}
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape)) if layout == "NHWC" else None
    z = torch.randn(shape, device=DEVICE, dtype=torch.float64).to(dtype, memory_format=order or torch.contiguous_format)
    channels = shape[1]
    mean, var, gamma, beta = (torch.randn(channels, **place) for _ in range(4))
    slope = torch.randn(1 if shared else channels, **place)
    bn = (mean, var.abs() + 0.1, gamma, beta) if norm else (None,) * 4
    seed = torch.tensor([0x1234_5678_9ABC_DEF0, (1 << 40) + 4], device=DEVICE)
    added = None if residual == "none" else torch.randn_like(z)
    return z, Epilogue(*bn, slope, added, slope_kind, 1e-3, -0.125, 0.5, residual == "after", seed, dropout)


def changed(change, arguments):
    """The arguments with change(tensor) for each floating-point tensor, those of an Epilogue too."""

    def one(value):
        if isinstance(value, Epilogue):
            return Epilogue(*map(one, value))
        return change(value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return [one(value) for value in arguments]


def double(arguments):
    return changed(torch.Tensor.double, arguments)


def check(arguments):
    """Returns y after checking its error against the oracle, its strides, and that nothing was mutated."""
    z, (wide, e) = arguments[0], double(arguments)
    with unmutated(*arguments):
        y = pointwise.epilogue(*arguments)
    assert (y.shape, y.dtype, y.device, y.stride()) == (z.shape, z.dtype, z.device, z.stride())
    assert_elements(y, reference.epilogue(wide, e), epilogue_magnitude(wide.abs(), e), computed=8)
    return y


def accumulator(z):
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def draw(shape, dtype, layout, slopes="tensor", residual="before", norm=True, dropout=0.0, **more):
    """grad, z and an epilogue. grad is 0 where u is near 0, since rounding may change the sign of u."""
    kind = "tensor" if slopes == "shared" else slopes
    z, e = arguments(shape, dtype, layout, kind, residual, norm, shared=slopes == "shared", dropout=dropout, **more)
    grad = torch.randn_like(z)
    u = reference.gradient(*double([grad, z, e]))[2]
    return grad.masked_fill_(u.abs() < 1e-3, 0.0), z, e


def means_of(z):
    """Random means of the size of gradients; like the sums, (3, C)."""
    return torch.randn(3, z.shape[1], device=z.device, dtype=accumulator(z))


def magnitudes(call):
    """Magnitudes per element of the terms of the sums: |du|, |(z - mean) / sqrt(var + eps)|, |dy * u|; and |scale|."""
    grad, z, e = double(call)
    dy = grad.abs() / (1 - e.dropout)
    column = (1, -1) + (1,) * (z.dim() - 2)
    deviation, scale, shift = torch.zeros_like(z), torch.ones_like(z[:1]), 0.0
    if e.mean is not None:
        factor = (e.var + e.eps).rsqrt().view(column)
        deviation, scale = (z.abs() + e.mean.abs().view(column)) * factor, (factor * e.gamma.view(column)).abs()
        shift = e.mean.abs().view(column) * scale + e.beta.abs().view(column)
    u = z.abs() * scale + shift + (0 if e.residual is None else e.residual.abs())
    steepest = max(1.0, abs(e.slope_value), abs(e.slope_upper), e.slope.abs().max().item())
    return dy * steepest, deviation, dy * u, scale


@contextlib.contextmanager
def unmutated(*arguments):
    tensors = [value for value in flat(*arguments) if isinstance(value, torch.Tensor)]
    before = [t.clone() for t in tensors]
    yield
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


def check_sums(call):
    grad, z = call[:2]
    with unmutated(*call):
        sums = gradients.epilogue_reduce(*call)
    assert (sums.shape, sums.dtype, sums.device) == ((3, z.shape[1]), accumulator(z), z.device)
    du, deviation, slopes, _ = magnitudes(call)
    size = torch.stack([part.transpose(0, 1).flatten(1).sum(1) for part in (du, du * deviation, slopes)])
    assert_elements(sums, reference.epilogue_reduce(*double(call)), size, "sums", computed=16)
    return sums


def check_gradients(call, means=None, need_z=True, need_residual=True):
    grad, z, e = call
    with unmutated(*call, means):
        result = gradients.epilogue_backward(grad, z, means, need_z, need_residual, e)
    truth = reference.epilogue_backward(*double([grad, z, means, need_z, need_residual, e]))
    du, deviation, _, scale = magnitudes(call)
    column, size = (1, -1) + (1,) * (z.dim() - 2), du
    if means is not None and e.mean is not None:
        plain, weighted = means[:2].double().abs()
        size = size + plain.view(column) + deviation * weighted.view(column)
    sizes, needs = (size * scale, du), (need_z, need_residual)
    for name, gradient, true, added, needed in zip(("dz", "du"), result, truth, sizes, needs):
        assert (gradient.dtype, gradient.device) == (z.dtype, z.device)
        assert gradient.shape == (z.shape if needed else (0,))
        if needed:
            assert gradient.stride() == z.stride()
            assert_elements(gradient, true, added, name, computed=16)
    return result


def check_statistics(z):
    with unmutated(z):
        mean, var = gradients.statistics(z)
    assert_statistics(z, mean, var, 4)
    return mean, var


def assert_statistics(z, mean, var, computed):
    """The mean is within `computed` units of the mean magnitude. So is each tile's, which bounds the error of var."""
    assert all((v.shape, v.dtype, v.device) == ((z.shape[1],), accumulator(z), z.device) for v in (mean, var))
    assert mean.untyped_storage().data_ptr() != var.untyped_storage().data_ptr()
    values = z.double().transpose(0, 1).flatten(1)
    true_var, added = values.var(1, correction=0), values.abs().mean(1)
    assert_elements(mean, values.mean(1), added, "mean", stored=0, computed=computed)
    shift = computed * torch.finfo(mean.dtype).eps * added
    more = shift.square() + 2 * shift * true_var.sqrt()
    assert (var >= 0).all()
    assert_elements(var, true_var, true_var, "var", stored=0, computed=16, more=more)


@contextlib.contextmanager
def programs(multiprocessors, config=None, int64=False, steps=1):
    """Launches as on a GPU with that many multiprocessors; config: for all kernels; int64: 64-bit offsets; steps:
    REDUCTION_STEPS."""
    chosen = {} if config is None else {"pointwise_config": lambda key: config}
    chip = {"chip": lambda device: (90, multiprocessors)}
    with (
        mock.patch.multiple(reductions, **chip, **chosen, REDUCTION_STEPS=steps),
        mock.patch.multiple(operands, **chip, **chosen),
        mock.patch.object(launch, "INT32_ELEMENTS", 0 if int64 else 2**31),
    ):
        yield
