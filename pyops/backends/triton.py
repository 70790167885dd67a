"""Row `triton`: our Triton kernels. NVIDIA sm_80 and newer; on CPU only under TRITON_INTERPRET=1, for tests.

The convolution is an implicit matrix product with the whole epilogue behind it, in one launch. It reads the weight as
channels_last: a weight in another layout is copied in each call, a frozen one (which is channels_last) never.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.layout import memory_format
from ..core.spec import Epilogue, Spec
from ..ops import device_support, triton_impl
from ..triton_kernels.conv.configs import DTYPES
from .training import convolution_backward  # noqa: F401

name = "triton"


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def available() -> list[str]:
    if not triton_impl.triton_found:
        return ["triton is not installed (pip install triton)"]
    if _interpreting():
        return []
    if not torch.cuda.is_available():
        return ["no CUDA device; on CPU it runs only under TRITON_INTERPRET=1, for tests"]
    return [*device_support.too_old(torch.device("cuda", torch.cuda.current_device()))]


def reasons(input: Tensor, weight: Tensor | None, spec: Spec | None) -> list[str]:
    found = available()
    if input.device.type not in ("cuda", "meta") and not (_interpreting() and input.device.type == "cpu"):
        found.append(f"input: expected a CUDA tensor, got one on {input.device}")
    elif input.is_cuda and not found:
        found += device_support.too_old(input.device)
    if weight is not None and input.dtype not in DTYPES:
        found.append(f"input: expected float16, bfloat16 or float32 to convolve, got {input.dtype}")
    return found


def primitive(name: str, x: Tensor) -> Callable:
    """What computes a primitive without a convolution for tensors like x."""

    def run(*arguments):
        by_operator = _by_operator(*arguments)
        return (getattr(torch.ops.atrous_triton, name) if by_operator else triton_impl.pointwise(name))(*arguments)

    return run


def epilogue(z: Tensor, arguments: Epilogue) -> Tensor:
    return primitive("_epilogue", z)(z, *arguments)


def conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    if not _by_operator(input, weight, bias, *arguments):
        return triton_impl.triton_conv_epilogue(input, weight, bias, spec, arguments)
    geometry = (spec.stride, spec.padding, spec.dilation, spec.groups)
    return torch.ops.atrous_triton._conv_epilogue(input, weight, bias, *geometry, *arguments)


def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    return conv_epilogue(input, weight, bias, spec, Epilogue())


def convolution_statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor, Tensor]:
    """z, and the mean and biased variance of its channels, in one launch."""
    if not _by_operator(input, weight, bias):
        return triton_impl.triton_conv_statistics(input, weight, bias, spec)
    geometry = (spec.stride, spec.padding, spec.dilation, spec.groups)
    return torch.ops.atrous_triton._conv_statistics(input, weight, bias, *geometry)


def _by_operator(x: Tensor, *others) -> bool:
    """Whether the kernel is called through its operator: on CPU there is none, and under graph capture `_epilogue` may
    not be the kernel."""
    return x.is_meta or (x.is_cuda and triton_impl.observed(x, *others) and not triton_impl.capturing(x))


# The frozen form: the weight is laid out once as the kernels read it.


def pack_reasons(input: Tensor, weight: Tensor, spec: Spec) -> list[str]:
    return []


def pack_key(input: Tensor, weight: Tensor, spec: Spec) -> tuple:
    """What a pack depends on besides the weight."""
    return (memory_format(input, weight),)


def pack(input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """The weight in y's layout, which is that of either: a channels_last one would make an NCHW y channels_last."""
    return weight.contiguous(memory_format=memory_format(input, weight))


def packed_conv_epilogue(
    input: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
) -> Tensor:
    """conv_epilogue with the weight in both forms."""
    return conv_epilogue(input, packed, bias, spec, arguments)
