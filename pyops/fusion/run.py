"""The functions that a regenerated forward calls: a site in one fused call, or its plain modules as a fallback.

The operators take 4-D floating-point input and a residual that broadcasts to the output. Eager takes more (a sum may
also grow the convolution's output, or change its dtype in place), and a fused model must accept what the model does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import nn as fused
from ..autograd import max_pool
from ..core import checks
from ..core.activation import SlopeLike
from ..core.spec import Spec
from ..core.torch_compat import has_hooks

Act = nn.Module | SlopeLike | None  # SlopeLike: the slope of a functional activation


class FuseOptions(NamedTuple):
    """The options of fuse() that are passed to every call; see functional.conv_bn_act."""

    backend: str = "auto"
    recompute: bool = True


def conv_bn_act(conv, bn, act: Act, input, residual=None, after=False, inplace=False, backend="auto", recompute=True):
    """y = act(bn(conv(x)) + r), or act(bn(conv(x))) + r. inplace: the sum has the dtype of its first term."""
    act = module_of(act)
    if _takes(input) and (residual is None or _adds(residual, input, _size(conv, input), inplace)):
        return fused.conv_bn_act(conv, bn, act, input, residual, after, backend, recompute)
    z = conv(input)
    return _finish(z if bn is None else bn(z), act, residual, after, inplace)


def bn_act(bn, act: Act, input, residual=None, after=False, inplace=False, backend="auto", recompute=True):
    """y = act(bn(x) + r), or act(bn(x)) + r."""
    act = module_of(act)
    if _takes(input) and (residual is None or _adds(residual, input, input.shape, inplace)):
        return fused.bn_act(bn, act, input, residual, after, backend, recompute)
    return _finish(bn(input), act, residual, after, inplace)


def add_act(act: Act, input, other, inplace=False, backend="auto", recompute=True):
    """y = act(x + o)."""
    act = module_of(act)
    if _takes(input) and _adds(other, input, input.shape, inplace):
        return fused.add_act(act, input, other, backend, recompute)
    return _finish(input, act, other, False, inplace)


def max_pool2d(pool: nn.MaxPool2d, input):
    """pool(x). With gradients it saves the position of each maximum instead of x, which a site can recompute."""
    gradients = _takes(input) and input.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling() or not gradients or has_hooks(pool):
        return pool(input)  # torch.compile saves no more than that
    geometry = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    return max_pool.max_pool2d(input, *geometry)


def _takes(x) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4 and x.dtype in checks.DTYPES and x.layout == torch.strided


def _adds(residual, input: Tensor, size, inplace: bool) -> bool:
    if not isinstance(residual, Tensor) or residual.dtype not in checks.DTYPES or residual.layout != torch.strided:
        return False
    device = input.device
    casts = not input.is_meta and torch.is_autocast_enabled(device.type)  # is_autocast_enabled("meta") raises
    dtype = torch.get_autocast_dtype(device.type) if casts else input.dtype
    if residual.device != device or (inplace and residual.dtype != dtype) or residual.dim() > 4:
        return False
    return all(a == 1 or a == b for a, b in zip(reversed(residual.shape), reversed(size)))


def _size(conv, input: Tensor) -> tuple[int, ...]:
    if isinstance(conv, fused.FrozenConv2d):
        stride, padding, dilation, _ = conv.geometry
    else:
        stride, padding, dilation = conv.stride, conv.padding, conv.dilation
    height, width = input.shape[2:]
    if padding != "same":
        spec = Spec(stride, (0, 0) if padding == "valid" else padding, dilation)
        height, width = spec.output_size((height, width), tuple(conv.weight.shape[2:]))
    return (input.shape[0], conv.out_channels, height, width)


def _finish(z, act: nn.Module | None, residual, after: bool, inplace: bool):
    if act is not None and (after or residual is None):
        z = act(z)
    if residual is not None:
        z = z.add_(residual) if inplace else z + residual
    return z if act is None or after or residual is None else act(z)


def module_of(act: Act) -> nn.Module | None:
    """Returns a module for a functional activation, cached so that no compiled graph constructs it."""
    if act is None or isinstance(act, nn.Module):
        return act
    if act not in _FUNCTIONAL:
        _FUNCTIONAL[act] = nn.RReLU(*act) if isinstance(act, tuple) else nn.LeakyReLU(act)  # type: ignore[arg-type]
    return _FUNCTIONAL[act]


_FUNCTIONAL: dict[SlopeLike, nn.Module] = {"relu": nn.ReLU()}
