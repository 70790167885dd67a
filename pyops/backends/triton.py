"""Backend `triton`: our Triton kernels, on NVIDIA sm_80 and newer; on a CPU under TRITON_INTERPRET=1 only, for tests.

The convolution is an implicit GEMM with the whole epilogue fused, in one launch. It reads the weight as channels_last:
a weight in another layout is copied in each call, a frozen weight (which is channels_last) never.
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
from .aten import convolution_backward  # noqa: F401

name = "triton"
one_launch_statistics = True


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def available() -> list[str]:
    if not triton_impl.triton_installed:
        return ["triton is not installed (pip install triton)"]
    if _interpreting():
        return []
    if not torch.cuda.is_available():
        return ["no CUDA device; on CPU it runs only under TRITON_INTERPRET=1, for tests"]
    return [*device_support.too_old(torch.device("cuda", torch.cuda.current_device()))]


def reasons(input: Tensor, weight: Tensor | None, spec: Spec | None) -> list[str]:
    problems = available()
    if input.device.type not in ("cuda", "meta") and not (_interpreting() and input.device.type == "cpu"):
        problems.append(f"input: expected a CUDA tensor, got one on {input.device}")
    elif input.is_cuda and not problems:
        problems += device_support.too_old(input.device)
    if weight is not None and input.dtype not in DTYPES:
        problems.append(f"input: expected float16, bfloat16 or float32 to convolve, got {input.dtype}")
    return problems


def primitive(name: str, x: Tensor) -> Callable:
    return triton_impl.primitive(name, triton_impl.launch)


def epilogue(z: Tensor, arguments: Epilogue) -> Tensor:
    return primitive("_epilogue", z)(z, arguments)


def conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    return primitive("_conv_epilogue", input)(input, weight, bias, spec, arguments)


def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    return conv_epilogue(input, weight, bias, spec, Epilogue())


def convolution_statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor, Tensor]:
    """One launch computes z and its statistics."""
    return primitive("_conv_statistics", input)(input, weight, bias, spec)


def pack_reasons(input: Tensor, weight: Tensor, spec: Spec) -> list[str]:
    return []


def pack_key(input: Tensor, weight: Tensor, spec: Spec) -> tuple:
    return (memory_format(input, weight),)


def pack(input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """The weight in the layout of y: a channels_last weight would make an NCHW y channels_last."""
    return weight.contiguous(memory_format=memory_format(input, weight))


def packed_normalizes(input: Tensor, weight: Tensor, spec: Spec) -> bool:
    return False


def packed_conv_epilogue(
    input: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
) -> Tensor:
    return conv_epilogue(input, packed, bias, spec, arguments)
