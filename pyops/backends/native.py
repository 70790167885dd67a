"""Row `native`: our C++ library, without Python or a JIT. On CPU: the convolution and its epilogue in one call.

Frozen 3x3 convolutions of stride 1 and any dilation run as a fused Winograd convolution, F(2x2, 3x3); everything else is
aten's convolution with the C++ epilogue.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..spec import Epilogue, Spec
from . import library

name = "native"


def available() -> list[str]:
    return [] if ops.library_error is None else [ops.library_error]


def reasons(input: Tensor, weight: Tensor | None, spec: Spec | None) -> list[str]:
    found = available()
    if input.device.type not in ("cpu", "meta"):
        found.append(f"input: expected a CPU tensor, got one on {input.device} (the CUDA kernels are not part of this release)")
    return found


epilogue = library.epilogue


def _conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    geometry = (spec.stride, spec.padding, spec.dilation, spec.groups)
    return torch.ops.atrous._conv_epilogue(input, weight, bias, *geometry, *arguments)


def conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    def run(input, weights, arguments):
        return _conv_epilogue(input, *weights, spec, arguments)

    return library.in_arithmetic_type(run, input, (weight, bias), arguments)


def winograd_reasons(input: Tensor, weight: Tensor, spec: Spec) -> list[str]:
    """Why a frozen convolution does not run as a Winograd convolution; the one statement of its constraints."""
    found = []
    if input.device.type != "cpu":
        found.append(f"device: expected cpu, got {input.device}")
    if tuple(weight.shape[2:]) != (3, 3):
        found.append(f"kernel: expected (3, 3), got {tuple(weight.shape[2:])}")
    if spec.stride != (1, 1):
        found.append(f"stride: expected (1, 1), got {spec.stride}")
    if spec.groups != 1:
        found.append(f"groups: expected 1, got {spec.groups}")
    if input.dtype == torch.float64:
        found.append("dtype: fp32 arithmetic, got float64")
    if input.dtype != torch.float32 and library.arithmetic_type(input) == input.dtype:
        found.append(f"dtype: this processor has instructions for {input.dtype}, which oneDNN uses")
    if weight.shape[0] < 16 or weight.shape[1] < 16:
        found.append(f"channels: expected at least 16 in and out, got {weight.shape[1]} and {weight.shape[0]}")
    return found


def pack_key(input: Tensor, weight: Tensor, spec: Spec) -> tuple:
    return library.pack_key(input, weight, spec) if winograd_reasons(input, weight, spec) else ("winograd",)


def pack(input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """The weight as `packed_conv_epilogue` wants it."""
    if winograd_reasons(input, weight, spec):
        return library.pack(input, weight, spec)
    return torch.ops.atrous._winograd_weight(weight)


def packed_conv_epilogue(
    input: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
) -> Tensor:
    if winograd_reasons(input, weight, spec):
        return library.packed_conv_epilogue(input, packed, weight, bias, spec, arguments)
    input = input.contiguous(memory_format=torch.channels_last)
    return torch.ops.atrous._winograd_epilogue(
        input, packed, weight.shape[0], bias, spec.padding, spec.dilation, *arguments
    )
