"""The short way of a call of the functional operators: small tensors on a CPU, without gradients.

Python asks only what the operators do not check themselves. Each function returns None for a call that needs more than
its operators, or that they refuse; the long way (functional.py) then computes it or raises the error. What both compute
has the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.layout import memory_format
from ..core.torch_compat import caller, intercepted
from .registration import library_loaded

_BACKENDS = {"auto", "library", "native"} if library_loaded else set()  # each would call these operators
_DTYPES = {torch.float32, torch.float64}  # a CPU may emulate the others, which a backend then convolves in fp32
_TENSORS = {Tensor, nn.Parameter}
_LARGEST = 2**16  # elements of the input: beside more of them the checks of the long way take no time
_TYPES = {*_TENSORS, type(None), int, float, str}
_NO_VECTORS = (None, None, None, None)

_epilogue = caller(torch.ops.atrous._epilogue.default)


def conv_bn_act(input, weight, bias, geometry, vectors, eps, slope, residual, after, backend) -> Tensor | None:
    """conv_bn_act in inference. geometry: as torch.conv2d takes it. vectors: mean, var, gamma, beta."""
    incomplete = vectors[0] is None and any(vector is not None for vector in vectors)
    if incomplete or type(geometry[1]) is str:  # torch warns of some paddings by name
        return None
    if not _takes(backend, input, (weight, bias, *vectors, slope, residual)) or input.dim() != 4:
        return None
    try:
        z = torch.conv2d(input, weight, bias, *geometry)
        if not (input.is_contiguous() and weight.is_contiguous() and z.is_contiguous()):
            z = z.contiguous(memory_format=memory_format(input, weight))
        return _finish(z, vectors, eps, slope, residual, after) if z.numel() else None
    except (RuntimeError, TypeError):
        return None


def bn_act(input, vectors, eps, slope, residual, after, backend) -> Tensor | None:
    """bn_act in inference."""
    if vectors[0] is None or not _takes(backend, input, (*vectors, slope, residual)) or input.dim() != 4:
        return None
    try:
        return _finish(input, vectors, eps, slope, residual, after)
    except (RuntimeError, TypeError):
        return None


def add_act(input, other, slope, backend) -> Tensor | None:
    """add_act without dropout."""
    if other is None or not _takes(backend, input, (other, slope)):
        return None
    try:  # the long way copies a 5-D tensor that is channels_last
        usual = input.dim() == 4 or input.is_contiguous()
        return _finish(input, _NO_VECTORS, 1e-5, slope, other, False) if usual else None
    except (RuntimeError, TypeError):
        return None


def _takes(backend: str, input, others: tuple) -> bool:
    """True for a small input on a CPU, other tensors like it, arguments of these types and no gradients."""
    if torch.compiler.is_compiling() or intercepted() or type(input) not in _TENSORS or backend not in _BACKENDS:
        return False
    if not _TYPES.issuperset(map(type, others)):
        return False
    dtype, grad = input.dtype, torch.is_grad_enabled()
    if not input.is_cpu or dtype not in _DTYPES or not 0 < input.numel() <= _LARGEST or (grad and input.requires_grad):
        return False
    for value in others:
        if type(value) in _TENSORS and (value.dtype != dtype or not value.is_cpu or (grad and value.requires_grad)):
            return False
    return True


def _finish(z: Tensor, vectors, eps, slope, residual, after) -> Tensor:
    if not eps >= 0:
        raise TypeError(f"eps: expected a number that is not negative, got {eps!r}")
    if type(slope) in _TENSORS:
        kind, value = "tensor", 1.0
    elif type(slope) is str:
        if slope != "relu":
            raise TypeError(f"slope: expected the name 'relu', got {slope!r}")
        kind, value, slope = slope, 1.0, None
    else:
        kind, value, slope = "number", slope, None
    if value == 1.0 and not after and eps == 1e-5:  # each argument that is passed takes time
        return _epilogue(z, *vectors, slope, residual, kind)
    return _epilogue(z, *vectors, slope, residual, kind, eps, value, 1.0, bool(after))
