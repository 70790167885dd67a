"""The short way of a call of the functional operators: small tensors on a CPU.

Python asks only what the operators do not check themselves. Each function returns None for a call that needs more than
its operators, or that they refuse; the long way (functional.py) then computes it or raises the error. What both compute
has the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.layout import memory_format
from ..core.torch_compat import caller, cpu_multiplies, intercepted, is_compiling
from .direct_training import Plan, small_layer
from .registration import library_loaded

_BACKENDS = {"auto", "library", "native"} if library_loaded else set()  # each would call these operators
# 16-bit types that this CPU emulates are left out, since a backend convolves them in fp32.
_HALVES = {dtype for dtype in (torch.bfloat16, torch.float16) if cpu_multiplies(dtype)}
_DTYPES = {torch.float32, torch.float64} | _HALVES
_TENSORS = {Tensor, nn.Parameter}
# Elements of the input. A larger convolution may be Winograd's, which the long way decides; beside larger maps the
# checks of the long way take no time.
_LARGEST_CONV, _LARGEST = 2**16, 2**20
_LARGEST_SAVED = 2**12  # with gradients, where the short way saves what the long way recomputes
_TYPES = {*_TENSORS, type(None), int, float, str}
NO_NORM: tuple = (None, None, None, None), 1e-5, False, 0.0, None

_epilogue = caller(torch.ops.atrous._epilogue.default)


def conv_bn_act(input, weight, bias, geometry, norm: tuple, slope, residual, after, backend) -> Tensor | None:
    """conv_bn_act. geometry: as torch.conv2d takes it.

    norm: (mean, var, gamma, beta), eps, training, momentum, and the number of batches that a training BatchNorm counts.
    """
    vectors, eps, training, *_ = norm
    incomplete = not training and vectors[0] is None and any(vector is not None for vector in vectors)
    if incomplete or type(geometry[1]) is str:  # torch warns of some paddings by name
        return None
    if not _takes(backend, input, (weight, bias, slope, residual), vectors, _LARGEST_CONV) or input.dim() != 4:
        return None
    if training or _needs_gradient(input, (weight, bias, *vectors, slope, residual)):
        pairs = ((one, one) if type(one) is int else one for one in geometry[:3])
        return _train(input, weight, bias, (*pairs, geometry[3]), norm, slope, residual, after)
    try:
        z = torch.conv2d(input, weight, bias, *geometry)
        if not (input.is_contiguous() and weight.is_contiguous() and z.is_contiguous()):
            z = z.contiguous(memory_format=memory_format(input, weight))
        return _finish(z, vectors, eps, slope, residual, after) if z.numel() else None
    except (RuntimeError, TypeError):
        return None


def bn_act(input, norm: tuple, slope, residual, after, backend) -> Tensor | None:
    """bn_act. norm: as for conv_bn_act."""
    vectors, eps, training, *_ = norm
    if (not training and vectors[0] is None) or not _takes(backend, input, (slope, residual), vectors):
        return None
    if input.dim() != 4:
        return None
    if training or _needs_gradient(input, (*vectors, slope, residual)):
        return _train(input, None, None, None, norm, slope, residual, after)
    try:
        return _finish(input, vectors, eps, slope, residual, after)
    except (RuntimeError, TypeError):
        return None


def add_act(input, other, slope, backend) -> Tensor | None:
    """add_act without dropout."""
    if other is None or not _takes(backend, input, (other, slope), ()):
        return None
    if _needs_gradient(input, (other, slope)):
        if input.dim() != 4:
            return None
        return _train(input, None, None, None, NO_NORM, slope, other, False)
    try:  # the long way copies a 5-D tensor that is channels_last
        usual = input.dim() == 4 or input.is_contiguous()
        return _finish(input, NO_NORM[0], 1e-5, slope, other, False) if usual else None
    except (RuntimeError, TypeError):
        return None


def _takes(backend: str, input, tensors: tuple, vectors: tuple, largest: int = _LARGEST) -> bool:
    """True for a small input on a CPU, tensors and vectors like it (for 16-bit inputs also vectors in fp32), and other
    arguments of these types."""
    if is_compiling() or intercepted() or type(input) not in _TENSORS or backend not in _BACKENDS:
        return False
    both = tensors + vectors
    if not _TYPES.issuperset(map(type, both)):
        return False
    dtype = input.dtype
    if not input.is_cpu or dtype not in _DTYPES or not 0 < input.numel() <= largest:
        return False
    halves = dtype in _HALVES
    for value in tensors if halves else both:
        if type(value) in _TENSORS and (value.dtype != dtype or not value.is_cpu):
            return False
    if halves:
        for value in vectors:
            if type(value) in _TENSORS and (value.dtype not in (dtype, torch.float32) or not value.is_cpu):
                return False
    return True


def _needs_gradient(input: Tensor, others: tuple) -> bool:
    if not torch.is_grad_enabled():
        return False
    if input.requires_grad:
        return True
    for value in others:
        if type(value) in _TENSORS and value.requires_grad:
            return True
    return False


def _train(input, weight, bias, geometry, norm: tuple, slope, residual, after) -> Tensor | None:
    """The layer with gradients, or with the statistics of the batch."""
    (mean, var, gamma, beta), eps, batch_stats, momentum, tracked = norm
    channels = input.shape[1] if weight is None else weight.shape[0]
    if (
        input.numel() > _LARGEST_SAVED
        or input.dtype in _HALVES
        or (batch_stats and (type(momentum) is not float or input.shape[0] < 2))
    ):
        return None  # torch refuses one value a channel, which two images are not
    for vector in (mean, var):
        if vector is not None and (type(vector) not in _TENSORS or vector.requires_grad or vector.shape != (channels,)):
            return None
    try:
        if (mean is None) != (var is None) or not eps > 0:
            return None
        kind, value, slope = _slope(slope)
        plan = Plan(geometry, batch_stats, mean, var, momentum, tracked, (kind, eps, value, 1.0, bool(after)))
        y = small_layer(plan, input, weight, bias, gamma, beta, slope, residual)
        return y if y.numel() else None
    except (RuntimeError, TypeError):
        return None


def _slope(slope) -> tuple[str, float, Tensor | None]:
    """slope_kind, slope_value and slope."""
    if type(slope) in _TENSORS:
        return "tensor", 1.0, slope
    if type(slope) is str:
        if slope != "relu":
            raise TypeError(f"slope: expected the name 'relu', got {slope!r}")
        return slope, 1.0, None
    return "number", slope, None


def _finish(z: Tensor, vectors, eps, slope, residual, after) -> Tensor:
    if not eps >= 0:
        raise TypeError(f"eps: expected a number that is not negative, got {eps!r}")
    kind, value, slope = _slope(slope)
    if z.dtype in _HALVES:
        vectors = [v if v is None or v.dtype == torch.float32 else v.float() for v in vectors]
        slope = slope if slope is None or slope.dtype == torch.float32 else slope.float()
    if value == 1.0 and not after and eps == 1e-5:  # each argument that is passed takes time
        return _epilogue(z, *vectors, slope, residual, kind)
    return _epilogue(z, *vectors, slope, residual, kind, eps, value, 1.0, bool(after))
