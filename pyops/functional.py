"""The functional operators: they check and group their arguments, choose a backend and call it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import autograd, reference
from .autograd.function import LayerConfig
from .backends import selection
from .backends.base import Backend
from .core import checks, sync_stats
from .core.activation import SlopeLike
from .core.call_args import NO_BATCH_NORM, BatchNormArgs, PostOpArgs
from .core.layout import laid_out, memory_format
from .core.spec import Epilogue, Spec
from .core.torch_compat import transformed
from .ops import direct, triton_impl


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

        bn(z) = (z - mean) / sqrt(var + eps) * gamma + beta

    There is a BatchNorm if `training` or `running_mean` is given.

    Args:
        input: x: (N, C, H, W) fp16 | bf16 | fp32 | fp64, NCHW or channels_last; the output has its layout.
        weight: w: (C_out, C / groups, kH, kW), the dtype of x.
        bias: b: (C_out,).
        running_mean, running_var, bn_weight, bn_bias: mean, var, gamma, beta: (C_out,), the dtype of x, or fp32 if x is
            fp16 or bf16.
        slope: "relu"; a number; a tensor (1,) or (C_out,); or (lower, upper): a random slope per element (RReLU).
        residual: r: the shape of y, or one that broadcasts to it. residual_after_act: y = act(bn(...)) + r.
        stride, dilation: an int or a pair (height, width). padding: likewise, or "same" or "valid".
        training: normalize with the statistics of this batch and update running_mean and running_var in place:
            running = (1 - momentum) * running + momentum * batch (with the unbiased variance).
        backend: "auto", or the backend that must run: "library", "native", "triton".
        recompute: the next layer need not save y for its backward: it is recomputed, bit for bit, from what this layer
            saves.

    Returns:
        y: (N, C_out, H', W'), the dtype of x, or autocast's under autocast, or that of r if it is wider.

    Raises:
        TypeError, ValueError, RuntimeError: as nn.Conv2d, nn.BatchNorm2d and the activation raise for the same mistake;
        RuntimeError: the named backend cannot run this call, with its reasons.

    In a transform of torch.func, forward-mode AD, torch.jit's and torch.fx's tracers, and for tensor subclasses, the
    layer is its composition of torch's own operators (F.rrelu then draws the slopes). Under create_graph=True the
    backward differentiates that composition, with the slopes that were drawn.

    Source: Ioffe and Szegedy 2015 (arXiv:1502.03167); Yu and Koltun 2016 (arXiv:1511.07122); He et al. 2015
    (arXiv:1502.01852), for PReLU; Xu et al. 2015 (arXiv:1505.00853), for RReLU.
    """
    geometry = (stride, padding, dilation, groups)
    norm = (running_mean, running_var, bn_weight, bn_bias), eps, training, momentum, None
    y = direct.conv_bn_act(input, weight, bias, geometry, norm, slope, residual, residual_after_act, backend)
    if y is not None:
        return y
    batch_norm = BatchNormArgs(running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    post_op = PostOpArgs(slope, residual, residual_after_act)
    return convolve(input, weight, bias, geometry, batch_norm, post_op, backend=backend, recompute=recompute)


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
    norm = (running_mean, running_var, weight, bias), eps, training, momentum, None
    y = direct.bn_act(input, norm, slope, residual, residual_after_act, backend)
    if y is not None:
        return y
    batch_norm = BatchNormArgs(running_mean, running_var, weight, bias, training, momentum, eps, None, "")
    return normalize(input, batch_norm, PostOpArgs(slope, residual, residual_after_act), backend, recompute)


def normalize(
    input: Tensor, batch_norm: BatchNormArgs, post_op: PostOpArgs, backend: str = "auto", recompute: bool = True
) -> Tensor:
    """bn_act on grouped arguments."""
    batch_norm = batch_norm._replace(required=True)
    if transformed((input, *batch_norm[:4], *post_op.tensors())):
        return _composition(input, batch_norm, post_op)
    checks.tensor("input", input)
    checks.feature_map("input", input, ValueError)
    batch_norm.check(input, tuple(input.shape))
    post_op.check(input, tuple(input.shape), _autocasts(input))
    return _pointwise(input, batch_norm, post_op, backend, recompute)


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
        slope: as for conv_bn_act.
        dropout: probability p of a zero in training; the other elements are scaled by 1 / (1 - p).

    Returns and Raises: as conv_bn_act; ValueError for a dropout outside [0, 1].
    Source: Srivastava et al., Dropout (JMLR 2014).
    """
    if dropout == 0.0:
        y = direct.add_act(input, other, slope, backend)
        if y is not None:
            return y
    checks.probability("dropout", dropout)
    post_op = PostOpArgs(slope, other, False, name="other", required=True, dropout=dropout if training else 0.0)
    return post_process(input, post_op, backend, recompute)


def post_process(input: Tensor, post_op: PostOpArgs, backend: str = "auto", recompute: bool = True) -> Tensor:
    """add_act on grouped arguments."""
    if transformed((input, *post_op.tensors())):
        return _composition(input, NO_BATCH_NORM, post_op)
    checks.tensor("input", input)
    post_op.check(input, tuple(input.shape), _autocasts(input))
    return _pointwise(input, NO_BATCH_NORM, post_op, backend, recompute)


def _pointwise(z: Tensor, batch_norm: BatchNormArgs, post_op: PostOpArgs, backend: str, recompute: bool) -> Tensor:
    if _autocasts(z):  # autocast casts none of these arguments
        with torch.autocast(z.device.type, enabled=False):
            return _pointwise(z, batch_norm, post_op, backend, recompute)
    if z.numel() == 0 and batch_norm.group is None:  # torch gives an empty result strides by rules of its own
        return _composition(z, batch_norm, post_op)
    training = batch_norm.training or _needs_gradient((z, *batch_norm[:4], *post_op.tensors()))
    run = _train_epilogue if training else _epilogue
    chosen = selection.choose(backend, z)
    if z.dim() < 2:  # no channel dimension: one channel
        return run(chosen, z.reshape(1, 1, *z.shape), batch_norm, post_op, recompute).reshape(z.shape)
    return run(chosen, z, batch_norm, post_op, recompute)


def _epilogue(backend: Backend, z: Tensor, batch_norm: BatchNormArgs, post_op: PostOpArgs, recompute: bool) -> Tensor:
    return backend.epilogue(*_pointwise_arguments(z, batch_norm, post_op))


def _train_epilogue(
    backend: Backend, z: Tensor, batch_norm: BatchNormArgs, post_op: PostOpArgs, recompute: bool
) -> Tensor:
    z, epilogue = _pointwise_arguments(z, batch_norm, post_op)
    return _train(backend, None, batch_norm, z, None, None, epilogue, recompute)


def _pointwise_arguments(z: Tensor, batch_norm: BatchNormArgs, post_op: PostOpArgs) -> tuple[Tensor, Epilogue]:
    layout = memory_format(z)
    epilogue = post_op.epilogue(batch_norm, z, z.shape, layout)
    return laid_out(z, post_op.dtype(z), layout), epilogue


def _train(
    backend: Backend, spec: Spec | None, batch_norm: BatchNormArgs, input: Tensor, weight: Tensor | None,
    bias: Tensor | None, epilogue: Epilogue, recompute: bool,
) -> Tensor:  # fmt: skip
    """Runs a layer with gradients, batch statistics or both, and updates the running statistics."""
    if batch_norm.training:
        epilogue = epilogue._replace(mean=None, var=None)
    config = LayerConfig(backend, spec, batch_norm.training, batch_norm.update, batch_norm.group)
    return autograd.fused_layer(config, input, weight, bias, epilogue, recompute)


def convolve(
    input, weight, bias, geometry, batch_norm, post_op, *,
    prepacked=None, backend="auto", recompute=True, autocast=False,
) -> Tensor:  # fmt: skip
    """conv_bn_act on grouped arguments. prepacked: the prepacked weights of a frozen convolution, filled here."""
    tensors = (input, weight, bias, *batch_norm[:4], *post_op.tensors())
    if transformed(tensors):
        return _composition(input, batch_norm, post_op, (weight, bias, *geometry))
    checks.tensor("input", input)
    checks.tensor("weight", weight, like=input)
    if bias is not None:
        checks.tensor("bias", bias, like=input)
    if _autocasts(input):
        tensors = _autocast(input), _autocast(weight), _autocast(bias)
        with torch.autocast(input.device.type, enabled=False):
            return convolve(
                *tensors, geometry, batch_norm, post_op,
                prepacked=prepacked, backend=backend, recompute=recompute, autocast=True,
            )  # fmt: skip
    spec, before = checks.convolution(input, weight, bias, *geometry)
    if before is not None:
        input = F.pad(input, before)
    size = (input.shape[0], weight.shape[0], *spec.output_size(input.shape[2:], weight.shape[2:]))
    batch_norm.check(input, size)
    post_op.check(input, size, autocast)
    layout = memory_format(input, weight)
    if batch_norm.training or _needs_gradient(tensors):
        chosen = selection.choose(backend, input, weight, spec, training=True)
        if post_op.dtype(input) == input.dtype:
            epilogue = post_op.epilogue(batch_norm, input, size, layout)
            return _train(chosen, spec, batch_norm, input, weight, bias, epilogue, recompute)
        z = _train(chosen, spec, NO_BATCH_NORM, input, weight, bias, Epilogue(), recompute)
        return _train_epilogue(chosen, z, batch_norm, post_op, recompute)
    frozen, residual = prepacked is not None, post_op.residual is not None
    chosen = selection.choose(backend, input, weight, spec, frozen=frozen, residual=residual)
    run = chosen.conv_epilogue if prepacked is None else prepacked.bind(chosen)
    if backend == "auto" and chosen.name == "triton" and triton_impl.capturing(input):
        run = selection.compiled_or_library(run)
    if post_op.dtype(input) != input.dtype:
        return _epilogue(chosen, run(input, weight, bias, spec, Epilogue()), batch_norm, post_op, recompute)
    return run(input, weight, bias, spec, post_op.epilogue(batch_norm, input, size, layout))


def _composition(input: Tensor, batch_norm: BatchNormArgs, post_op: PostOpArgs, conv: tuple = ()) -> Tensor:
    """The layer in torch's own operators, which transforms, tensor subclasses and tracers see through."""
    sync_stats.check_single_process(batch_norm.group)
    if (conv or batch_norm.present) and isinstance(input, Tensor):
        checks.feature_map("input", input, RuntimeError if conv else ValueError)
    z = F.conv2d(input, *conv) if conv else input
    if batch_norm.present:
        z = F.batch_norm(z, *batch_norm[:7])
    kind, value, upper, slope = post_op.slope
    return reference.epilogue(z, Epilogue(
        slope=slope, residual=post_op.residual, slope_kind=kind, slope_value=value, slope_upper=upper,
        residual_after_act=post_op.after, dropout=post_op.dropout,
    ))  # fmt: skip


def _needs_gradient(tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _autocasts(input: Tensor) -> bool:
    return input.device.type != "meta" and torch.is_autocast_enabled(input.device.type)


def _autocast(tensor: Tensor | None) -> Tensor | None:
    """Casts a convolution argument as eager's autocast does: to the low precision unless it is fp64."""
    if tensor is None or tensor.dtype == torch.float64:
        return tensor
    return laid_out(tensor, torch.get_autocast_dtype(tensor.device.type))
