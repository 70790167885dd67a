"""Convolutions by torch's own operators (oneDNN, cuDNN): the part that the backends library and native share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.layout import memory_format
from ..core.spec import Epilogue, Spec, flat
from ..core.torch_compat import cpu_multiplies, is_compiling
from ..ops import triton_impl

# Dtypes that this CPU has no multiply instructions for: oneDNN emulates them, many times slower than fp32.
_EMULATED = {dtype for dtype in (torch.bfloat16, torch.float16) if not cpu_multiplies(dtype)}


def compute_dtype(input: Tensor) -> torch.dtype:
    """The dtype to convolve in: the input's, or fp32 where the CPU would emulate it (closer to fp64, and faster)."""
    return torch.float32 if input.device.type == "cpu" and input.dtype in _EMULATED else input.dtype


def in_compute_dtype(
    run: Callable[[Tensor, tuple[Tensor | None, ...], Epilogue], Tensor],
    input: Tensor,
    weights: tuple[Tensor | None, ...],
    arguments: Epilogue,
) -> Tensor:
    """run(input, weights, arguments) computed in compute_dtype(input); the result has the input's dtype."""
    dtype = compute_dtype(input)
    if dtype == input.dtype:
        return run(input, weights, arguments)
    residual = arguments.residual
    arguments = arguments._replace(residual=None if residual is None else residual.to(dtype))
    layout = memory_format(input, *(w for w in weights if w is not None))  # a copy of one channel may show another
    weights = tuple(w if w is None else _converted(w, dtype, input) for w in weights)
    return run(_converted(input, dtype, input), weights, arguments).to(input.dtype, memory_format=layout)


def _converted(t: Tensor, dtype: torch.dtype, input: Tensor) -> Tensor:
    """A tensor of a convolution of `input`, in this dtype. If the input has one channel, in NCHW: with the strides of
    channels_last oneDNN's convolution in fp32 is wrong where the result has one column (torch 2.13)."""
    if t.dtype == dtype:
        return t
    return t.to(dtype, memory_format=torch.contiguous_format if input.shape[1] == 1 else torch.preserve_format)


def primitive(name: str, x: Tensor) -> Callable:
    """The primitive for tensors like x: on a GPU in Triton, else in C++ if libatrous.so is built for that GPU, else in
    plain torch; on a CPU torch.ops.atrous."""
    device = x.device
    if x.is_cuda and (triton_impl.triton_runs(device) or not triton_impl.atrous_runs(device)):
        return triton_impl.primitive(name, triton_impl.run_pass)
    return operator(name)


def operator(name: str) -> Callable:
    """A primitive by its operator of torch.ops.atrous."""
    run = getattr(torch.ops.atrous, name)
    return lambda *arguments: run(*flat(*arguments))


def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    """z = conv2d(x, w) + b, computed in compute_dtype(x) and rounded to the dtype of x.

    Some of aten's CUDA kernels, as in fp64, support contiguous (NCHW) tensors only: z is then copied into the layout of
    x or w. On other devices it keeps the strides that eager gives it.
    """
    dtype = compute_dtype(input)
    b = None if bias is None else bias.to(dtype)
    z = torch.conv2d(_converted(input, dtype, input), _converted(weight, dtype, input), b, *spec).to(input.dtype)
    return z.contiguous(memory_format=memory_format(input, weight)) if z.is_cuda or dtype != input.dtype else z


def relu_alone(input: Tensor, e: Epilogue) -> bool:
    """True if relu_ on the convolution's result is the whole epilogue: 10 us less host time than our operator."""
    nothing_else = not e.dropout and all(vector is None for vector in (e.mean, e.gamma, e.beta, e.residual))
    return e.slope_kind == "relu" and nothing_else and input.device.type == "cpu" and not is_compiling()


def with_statistics(
    convolve: Callable[..., Tensor], primitive: Callable[[str, Tensor], Callable]
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Backend.convolution_statistics from a convolution and a separate pass over its output."""

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
        z = convolve(input, weight, bias, spec)
        return z, *primitive("_statistics", z)(z)

    return run


convolution_statistics = with_statistics(convolution, primitive)


def convolution_backward(
    grad: Tensor, input: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format, needed: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dw and db by aten.convolution_backward in compute_dtype(x), rounded to the dtype of x."""
    dtype = compute_dtype(input)
    geometry = (spec.stride, spec.padding, spec.dilation, False, (0, 0), spec.groups)
    dx, dw, db = torch.ops.aten.convolution_backward(
        grad.to(dtype), input.to(dtype), weight.to(dtype), [weight.shape[0]], *geometry, needed
    )
    return _to(dx, input.dtype), _to(dw, input.dtype), _to(db, input.dtype)


def _to(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if gradient is None else gradient.to(dtype)
