"""The steps of a site that trains, for the rows whose convolution is the library's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.layout import memory_format
from ..core.spec import Spec
from ..ops import triton_impl
from .arithmetic import arithmetic_type


def primitive(name: str, x: Tensor) -> Callable:
    """What computes a primitive without a convolution for tensors like x: on a GPU Triton; C++ without it, where the
    library is built for the GPU; plain torch where neither is."""
    device = x.device
    if not (x.is_cuda and (triton_impl.triton_runs(device) or not triton_impl.atrous_runs(device))):
        return getattr(torch.ops.atrous, name)
    return triton_impl.primitive(name)


def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    """z = conv2d(x, w) + b, in the layout of x or w, rounded to the dtype of x.

    Some of aten's own kernels for a card, as in fp64, know contiguous tensors alone. On meta z is as eager's is.
    """
    dtype = arithmetic_type(input)
    tensors = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    z = torch.conv2d(*tensors, spec.stride, spec.padding, spec.dilation, spec.groups).to(input.dtype)
    return z if z.is_meta else z.contiguous(memory_format=memory_format(input, weight))


def with_statistics(
    convolve: Callable[..., Tensor], primitive: Callable[[str, Tensor], Callable]
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The same convolution, and the mean and biased variance of the channels of its z, in a pass of their own."""

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
        z = convolve(input, weight, bias, spec)
        return z, *primitive("_statistics", z)(z)

    return run


convolution_statistics = with_statistics(convolution, primitive)


def convolution_backward(
    grad: Tensor, input: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format, needed: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of input, weight and bias, those that are needed.

    input: only its size counts where weight's is not needed. layout: that of the input in the forward.
    """
    dtype = arithmetic_type(input)
    geometry = (spec.stride, spec.padding, spec.dilation, False, (0, 0), spec.groups)
    dx, dw, db = torch.ops.aten.convolution_backward(
        grad.to(dtype), input.to(dtype), weight.to(dtype), [weight.shape[0]], *geometry, needed
    )
    return _to(dx, input.dtype), _to(dw, input.dtype), _to(db, input.dtype)


def _to(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if gradient is None else gradient.to(dtype)
