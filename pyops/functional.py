"""The functional operators: checked arguments -> the row that runs them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import autograd
from .autograd.function import Call
from .backends import selection
from .core import checks
from .core.activation import SlopeLike
from .core.call_args import NO_NORMALISATION, Ending, Normalisation
from .core.layout import laid_out, memory_format
from .core.spec import Epilogue
from .ops import triton_impl


def conv_bn_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    *,
    slope: SlopeLike = 1.0,
    residual: Tensor | None = None,
    residual_after_act: bool = False,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: str = "auto",
    recompute: bool = True,
) -> Tensor:
    """y = act(bn(conv2d(x, w) + b) + r), with act(u) = u if u > 0 else slope * u.

    bn(z) = (z - mean) / sqrt(var + eps) * gamma + beta. There is a BatchNorm if `training` or `running_mean` is given.

    Args:
        input: x: (N, C, H, W) fp16 | bf16 | fp32 | fp64, NCHW or channels_last; the output has its layout.
        weight: w: (C_out, C / groups, kH, kW), the dtype of x.
        bias: b: (C_out,).
        running_mean, running_var, bn_weight, bn_bias: (C_out,), the dtype of x, or fp32 beside fp16 and bf16.
        slope: "relu"; a number; a tensor (1,) or (C_out,); or (lower, upper), which draws a slope an element (RReLU).
        residual: r: the shape of y, or a shape that broadcasts to it. residual_after_act: y = act(bn(...)) + r.
        stride, dilation: an int or a pair (height, width). padding: likewise, or "same" or "valid".
        training: normalise with the statistics of this batch and update running_mean and running_var in place, by
            running = (1 - momentum) * running + momentum * batch (batch variance unbiased).
        backend: "auto", or the row that must run: "library", "native", "triton".
        recompute: with gradients, y may be computed again in the backward from what this call keeps, to the same bits,
            so that the next site need not keep it.

    Returns:
        y: (N, C_out, H', W'), the dtype of x (under autocast: autocast's; of x + r if r's dtype is wider).

    Raises:
        TypeError, ValueError, RuntimeError: as nn.Conv2d, nn.BatchNorm2d and the activation raise for the same mistake;
        RuntimeError: the named backend cannot run this call, with its reasons.

    Source: Ioffe and Szegedy 2015 (arXiv:1502.03167); Yu and Koltun 2016 (arXiv:1511.07122); activation.py.
    """
    normalisation = Normalisation(running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    ending = Ending(slope, residual, residual_after_act)
    geometry = (stride, padding, dilation, groups)
    return convolve(input, weight, bias, geometry, normalisation, ending, backend=backend, recompute=recompute)


def bn_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    slope: SlopeLike = 1.0,
    residual: Tensor | None = None,
    residual_after_act: bool = False,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: str = "auto",
    recompute: bool = True,
) -> Tensor:
    """y = act((x - mean) / sqrt(var + eps) * weight + bias + r), with act(u) = u if u > 0 else slope * u.

    input: x: (N, C, H, W) fp16 | bf16 | fp32 | fp64. The other arguments, Returns and Raises are those of conv_bn_act.
    """
    normalisation = Normalisation(running_mean, running_var, weight, bias, training, momentum, eps, None, "")
    return normalise(input, normalisation, Ending(slope, residual, residual_after_act), backend, recompute)


def normalise(
    input: Tensor, normalisation: Normalisation, ending: Ending, backend: str = "auto", recompute: bool = True
) -> Tensor:
    """bn_act after its arguments are grouped."""
    checks.tensor("input", input)
    checks.feature_map("input", input, ValueError)
    normalisation = normalisation._replace(required=True)
    normalisation.check(input, tuple(input.shape))
    ending.check(input, tuple(input.shape), _autocasts(input))
    return _pointwise(input, normalisation, ending, backend, recompute)


def add_act(
    input: Tensor,
    other: Tensor,
    *,
    slope: SlopeLike = 1.0,
    dropout: float = 0.0,
    training: bool = False,
    backend: str = "auto",
    recompute: bool = True,
) -> Tensor:
    """y = dropout(act(x + o)), with act(u) = u if u > 0 else slope * u.

    Args:
        input, other: x, o: (N, C, ...) fp16 | bf16 | fp32 | fp64; o may broadcast to x.
        slope: as for conv_bn_act. dropout: the probability of a zero in training; the rest is scaled by 1 / (1 - p).

    Returns and Raises: as conv_bn_act; ValueError for a dropout outside [0, 1].
    Source: Srivastava et al., Dropout (JMLR 2014).
    """
    checks.tensor("input", input)
    checks.probability("dropout", dropout)
    ending = Ending(slope, other, False, name="other", required=True, dropout=dropout if training else 0.0)
    ending.check(input, tuple(input.shape), _autocasts(input))
    return _pointwise(input, NO_NORMALISATION, ending, backend, recompute)


def _pointwise(z: Tensor, normalisation: Normalisation, ending: Ending, backend: str, recompute: bool) -> Tensor:
    if _autocasts(z):  # none of these is cast
        with torch.autocast(z.device.type, enabled=False):
            return _pointwise(z, normalisation, ending, backend, recompute)
    training = normalisation.training or _needs_gradient((z, *normalisation[:4], *ending.tensors()))
    run = _train_epilogue if training else _epilogue
    row = selection.choose(backend, z)
    if z.dim() < 2:  # one channel
        return run(row, z.reshape(1, 1, *z.shape), normalisation, ending, recompute).reshape(z.shape)
    return run(row, z, normalisation, ending, recompute)


def _epilogue(row, z: Tensor, normalisation: Normalisation, ending: Ending, recompute: bool) -> Tensor:
    return row.epilogue(*_pointwise_arguments(z, normalisation, ending))


def _train_epilogue(row, z: Tensor, normalisation: Normalisation, ending: Ending, recompute: bool) -> Tensor:
    z, arguments = _pointwise_arguments(z, normalisation, ending)
    return _train(row, None, normalisation, z, None, None, arguments, recompute)


def _pointwise_arguments(z: Tensor, normalisation: Normalisation, ending: Ending) -> tuple[Tensor, Epilogue]:
    layout = memory_format(z)
    arguments = ending.arguments(normalisation, z, z.shape, layout)
    return laid_out(z, ending.dtype(z), layout), arguments


def _train(row, spec, normalisation: Normalisation, input, weight, bias, arguments: Epilogue, recompute) -> Tensor:
    """A site with gradients, batch statistics or both; updates the running statistics."""
    if normalisation.training:
        arguments = arguments._replace(mean=None, var=None)
    call = Call(row, spec, normalisation.training, normalisation.update, normalisation.group)
    return autograd.site(call, input, weight, bias, arguments, recompute)


def convolve(
    input, weight, bias, geometry, normalisation, ending, *, packs=None, backend="auto", recompute=True, autocast=False
) -> Tensor:
    """conv_bn_act after its arguments are grouped. packs: a frozen convolution's prepacked weights, filled here."""
    checks.tensor("input", input)
    checks.tensor("weight", weight, like=input)
    if bias is not None:
        checks.tensor("bias", bias, like=input)
    if _autocasts(input):
        tensors = _autocast(input), _autocast(weight), _autocast(bias)
        with torch.autocast(input.device.type, enabled=False):
            return convolve(
                *tensors, geometry, normalisation, ending,
                packs=packs, backend=backend, recompute=recompute, autocast=True,
            )  # fmt: skip
    spec, before = checks.convolution(input, weight, bias, *geometry)
    if before is not None:
        input = F.pad(input, before)
    size = (input.shape[0], weight.shape[0], *spec.output_size(input.shape[2:], weight.shape[2:]))
    normalisation.check(input, size)
    ending.check(input, size, autocast)
    layout = memory_format(input, weight)
    if normalisation.training or _needs_gradient((input, weight, bias, *normalisation[:4], *ending.tensors())):
        row = selection.choose(backend, input, weight, spec, training=True)
        if ending.dtype(input) == input.dtype:
            arguments = ending.arguments(normalisation, input, size, layout)
            return _train(row, spec, normalisation, input, weight, bias, arguments, recompute)
        z = _train(row, spec, NO_NORMALISATION, input, weight, bias, Epilogue(), recompute)
        return _train_epilogue(row, z, normalisation, ending, recompute)
    frozen, residual = packs is not None, ending.residual is not None
    row = selection.choose(backend, input, weight, spec, frozen=frozen, residual=residual)
    run = row.conv_epilogue if packs is None else packs.bind(row)
    if backend == "auto" and row.name == "triton" and triton_impl.capturing(input):
        run = selection.compiled_or_library(run)
    if ending.dtype(input) != input.dtype:
        return _epilogue(row, run(input, weight, bias, spec, Epilogue()), normalisation, ending, recompute)
    arguments = ending.arguments(normalisation, input, size, layout)
    return run(input, weight, bias, spec, arguments)


def _needs_gradient(tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _autocasts(input: Tensor) -> bool:
    return input.device.type != "meta" and torch.is_autocast_enabled(input.device.type)


def _autocast(tensor: Tensor | None) -> Tensor | None:
    """What eager's autocast does to a convolution's arguments: everything but fp64 goes to the low precision."""
    if tensor is None or tensor.dtype == torch.float64:
        return tensor
    return laid_out(tensor, torch.get_autocast_dtype(tensor.device.type))
