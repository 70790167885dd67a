"""Modules that hold ordinary Conv2d, BatchNorm2d and activation modules and run them as one fused call."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from . import functional
from .backends.prepack import PrepackedWeights
from .core import activation
from .core.activation import SlopeLike
from .core.call_args import NO_BATCH_NORM, BatchNormArgs, PostOpArgs
from .core.sync_stats import Group
from .core.torch_compat import buffer, children, has_hooks, pad_widths, parameter
from .models.prelu_training import init_prelu_kaiming_
from .ops import direct

__all__ = [
    "AddAct", "BNAct2d", "ConvBNAct2d", "FrozenConv2d", "add_act", "bn_act", "conv_bn_act", "init_prelu_kaiming_",
]  # fmt: skip
BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


def conv_bn_act(
    conv: nn.Conv2d | FrozenConv2d,
    bn: BatchNorm | None,
    act: nn.Module | None,
    input: Tensor,
    residual: Tensor | None = None,
    residual_after_act: bool = False,
    backend: str = "auto",
    recompute: bool = True,
) -> Tensor:
    """y = act(bn(conv(x)) + r), or act(bn(conv(x))) + r: plain modules in one call. See atrous.conv_bn_act."""
    if isinstance(input, Proxy):
        return _traced(bn, act, conv(input), residual, residual_after_act)
    _without_hooks("conv", conv)
    _without_hooks("bn", bn)
    slope = _slope(act)
    if isinstance(conv, FrozenConv2d):
        return conv(input, residual, slope, residual_after_act)
    padding: Any = conv.padding
    if conv.padding_mode != "zeros":
        input = F.pad(input, pad_widths(conv), mode=conv.padding_mode)
        padding = 0
    geometry = (conv.stride, padding, conv.dilation, conv.groups)
    weight, bias, norm = parameter(conv, "weight"), parameter(conv, "bias"), _direct_norm(bn)
    if norm is not None:
        vectors, eps, momentum = norm
        after = residual_after_act
        y = direct.conv_bn_act(input, weight, bias, geometry, vectors, eps, slope, residual, after, backend, momentum)
        if y is not None:
            return _counted(bn, momentum, y)
    post_op = PostOpArgs(slope, residual, residual_after_act)
    return functional.convolve(
        input, weight, bias, geometry, batch_norm_args(bn), post_op, backend=backend, recompute=recompute
    )


def bn_act(
    bn: BatchNorm,
    act: nn.Module | None,
    input: Tensor,
    residual: Tensor | None = None,
    residual_after_act: bool = False,
    backend: str = "auto",
    recompute: bool = True,
) -> Tensor:
    """y = act(bn(x) + r), or act(bn(x)) + r. See atrous.bn_act."""
    if isinstance(input, Proxy):
        return _traced(bn, act, input, residual, residual_after_act)
    _without_hooks("bn", bn)
    slope, norm = _slope(act), _direct_norm(bn)
    if norm is not None:
        vectors, eps, momentum = norm
        y = direct.bn_act(input, vectors, eps, slope, residual, residual_after_act, backend, momentum)
        if y is not None:
            return _counted(bn, momentum, y)
    post_op = PostOpArgs(slope, residual, residual_after_act)
    return functional.normalize(input, batch_norm_args(bn)._replace(prefix=""), post_op, backend, recompute)


def add_act(
    act: nn.Module | None,
    input: Tensor,
    other: Tensor,
    backend: str = "auto",
    recompute: bool = True,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """y = dropout(act(x + o)). See atrous.add_act."""
    if isinstance(input, Proxy):
        return F.dropout(_traced(None, act, input, other, False), dropout, training)
    return functional.add_act(
        input, other, slope=_slope(act), dropout=dropout, training=training, backend=backend, recompute=recompute
    )


def _traced(bn, act, u, residual, residual_after_act: bool):
    """The children themselves, which torch.fx traces as calls of modules: a BatchNorm then counts its batches."""
    u = u if bn is None else bn(u)
    u = u if residual is None or residual_after_act else u + residual
    y = u if act is None else act(u)
    return y + residual if residual is not None and residual_after_act else y


def _without_hooks(name: str, child: nn.Module | None) -> None:
    """Raises if a child has hooks (as of weight_norm or pruning): a fused call would not run them."""
    if child is not None and has_hooks(child):
        raise RuntimeError(f"{name}: expected a module without hooks, which a fused call would not run; got {child}")


def _slope(act: nn.Module | None) -> SlopeLike:
    """The slope argument of an activation, which must have no hooks."""
    _without_hooks("act", act)
    return 1.0 if act is None else activation.module_slope(act, act.training)


def _direct_norm(bn: BatchNorm | None) -> tuple[tuple, float, float | None] | None:
    """mean, var, gamma and beta; eps; and momentum, if it is training, of a BatchNorm that the short way takes."""
    if bn is None:
        return (None, None, None, None), 1e-5, None
    mean, var = buffer(bn, "running_mean"), buffer(bn, "running_var")
    if mean is None or var is None:
        return None
    vectors = mean, var, parameter(bn, "weight"), parameter(bn, "bias")
    if not bn.training:
        return vectors, bn.eps, None
    if isinstance(bn, nn.SyncBatchNorm) or not bn.track_running_stats or bn.momentum is None:
        return None
    return vectors, bn.eps, bn.momentum


def _counted(bn: BatchNorm | None, momentum: float | None, y: Tensor) -> Tensor:
    """y, after the batch of a training BatchNorm was counted."""
    if momentum is not None and bn is not None and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
    return y


def batch_norm_args(bn: BatchNorm | None) -> BatchNormArgs:
    """Returns what nn.BatchNorm2d.forward normalizes with; in training it counts the batch, as forward does."""
    if bn is None:
        return NO_BATCH_NORM
    momentum = 0.0 if bn.momentum is None else bn.momentum
    if bn.training and bn.track_running_stats and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:  # the cumulative average
            momentum = 1.0 / float(bn.num_batches_tracked)
    batch = bn.training or (bn.running_mean is None and bn.running_var is None)
    running = (bn.running_mean, bn.running_var) if not bn.training or bn.track_running_stats else (None, None)
    group = Group.of(bn.process_group) if batch and isinstance(bn, nn.SyncBatchNorm) and bn.training else None
    return BatchNormArgs(*running, bn.weight, bn.bias, batch, momentum, bn.eps, group)


class ConvBNAct2d(nn.Module):
    """y = act(bn(conv(x)) + r), or act(bn(conv(x))) + r with residual_after_act.

    Args:
        conv: nn.Conv2d. bn: nn.BatchNorm2d of its output channels, or None.
        act: nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Identity or None.
        residual_after_act, backend, recompute: as for atrous.conv_bn_act.

    forward(input, residual=None) takes x and r and returns y, as atrous.conv_bn_act does. The children keep their
    parameters, so checkpoints, optimizers and train() / eval() see ordinary modules.

    Raises TypeError for other children, RuntimeError for a bn whose num_features differs from conv.out_channels.
    """

    def __init__(
        self, conv, bn=None, act=None, residual_after_act: bool = False, backend: str = "auto", recompute: bool = True
    ):
        super().__init__()
        if not isinstance(conv, (nn.Conv2d, FrozenConv2d)):
            raise TypeError(f"conv: expected nn.Conv2d, got {type(conv).__name__}")
        if bn is not None and not isinstance(bn, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            raise TypeError(f"bn: expected nn.BatchNorm2d or None, got {type(bn).__name__}")
        if bn is not None and bn.num_features != conv.out_channels:
            raise RuntimeError(f"bn: expected num_features={conv.out_channels}, conv's channels, got {bn.num_features}")
        activation.module_slope(act)
        self.conv, self.bn, self.act = conv, bn, act
        self.residual_after_act, self.backend, self.recompute = residual_after_act, backend, recompute

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        named = children(self)
        parts = named["conv"], named.get("bn"), named.get("act")
        return conv_bn_act(*parts, input, residual, self.residual_after_act, self.backend, self.recompute)

    def extra_repr(self) -> str:
        return f"residual_after_act={self.residual_after_act}, backend={self.backend!r}"


class BNAct2d(nn.Module):
    """y = act(bn(x) + r), or act(bn(x)) + r with residual_after_act.

    bn: nn.BatchNorm2d. The other arguments are those of ConvBNAct2d; x, r and y are those of atrous.bn_act.
    """

    def __init__(self, bn, act=None, residual_after_act: bool = False, backend: str = "auto", recompute: bool = True):
        super().__init__()
        if not isinstance(bn, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            raise TypeError(f"bn: expected nn.BatchNorm2d, got {type(bn).__name__}")
        activation.module_slope(act)
        self.bn, self.act = bn, act
        self.residual_after_act, self.backend, self.recompute = residual_after_act, backend, recompute

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        named = children(self)
        parts = named["bn"], named.get("act")
        return bn_act(*parts, input, residual, self.residual_after_act, self.backend, self.recompute)


class AddAct(nn.Module):
    """y = dropout(act(x + o)), where dropout acts in training only.

    act: as for ConvBNAct2d. dropout: its probability of a zero. x, o and y are those of atrous.add_act.
    """

    def __init__(self, act=None, dropout: float = 0.0, backend: str = "auto", recompute: bool = True):
        super().__init__()
        activation.module_slope(act)
        self.act, self.dropout, self.backend, self.recompute = act, dropout, backend, recompute

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        act = children(self).get("act")
        return add_act(act, input, other, self.backend, self.recompute, self.dropout, self.training)


class FrozenConv2d(nn.Module):
    """y = act(w * x + b + r) with a BatchNorm folded into w and b, for deployment: no parameters, no training.

        w = w_conv * gamma / sqrt(var + eps)        b = beta + (b_conv - mean) * gamma / sqrt(var + eps)

    The folding is computed in fp64 and rounded once. `weight` (channels_last) and `bias` are ordinary buffers: saved,
    moved and copied as such. Weights prepacked for a backend are made from them at the first call and never saved.

    Raises ValueError for a padding_mode other than "zeros" and for a bn without running statistics.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d | None = None, backend: str = "auto"):
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ValueError(f'conv: expected padding_mode="zeros", got {conv.padding_mode!r}')
        if bn is not None and bn.running_mean is None:
            raise ValueError("bn: expected running statistics to fold, got track_running_stats=False")
        self.out_channels = conv.out_channels
        self.geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.backend = backend
        weight, bias = fold(conv, bn)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.prepacked = PrepackedWeights()

    def forward(
        self, input: Tensor, residual: Tensor | None = None, slope: SlopeLike = 1.0, residual_after_act: bool = False
    ) -> Tensor:
        post_op = PostOpArgs(slope, residual, residual_after_act)
        return functional.convolve(
            input, self.weight, self.bias, self.geometry, NO_BATCH_NORM, post_op,
            prepacked=self.prepacked, backend=self.backend,
        )  # fmt: skip

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.weight.shape[2], self.weight.shape[3]

    def extra_repr(self) -> str:
        stride, padding, dilation, groups = self.geometry
        return f"{tuple(self.weight.shape)}, {stride=}, {padding=}, {dilation=}, {groups=}, backend={self.backend!r}"


def fold(conv: nn.Conv2d, bn: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Folds a BatchNorm into the weight and bias of the convolution before it."""
    if bn is None:
        return fold_batch_norm(conv.weight, conv.bias)
    assert bn.running_mean is not None and bn.running_var is not None
    return fold_batch_norm(conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)


@torch.no_grad()
def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, mean: Tensor | None = None, var: Tensor | None = None,
    gamma: Tensor | None = None, beta: Tensor | None = None, eps: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The weight and bias of a convolution with the BatchNorm behind it, computed in fp64 and rounded once."""
    w = weight.double()
    b = w.new_zeros(w.shape[0]) if bias is None else bias.double()
    if mean is not None and var is not None:
        scale = torch.rsqrt(var.double() + eps)
        if gamma is not None:
            scale = scale * gamma.double()
        shift = 0.0 if beta is None else beta.double()
        w, b = w * scale[:, None, None, None], (b - mean.double()) * scale + shift
    return w.to(weight.dtype), b.to(weight.dtype)
