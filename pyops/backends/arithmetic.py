"""The dtype that a convolution is computed in; shared by the rows that run on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.spec import Epilogue

MKLDNN = torch.backends.mkldnn.is_available()
# What this CPU has no instructions to multiply: oneDNN emulates it, many times slower than fp32.
_EMULATED = {
    dtype
    for dtype, supported in (
        (torch.bfloat16, MKLDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        (torch.float16, MKLDNN and torch.ops.mkldnn._is_mkldnn_fp16_supported()),
    )
    if not supported
}


def arithmetic_type(input: Tensor) -> torch.dtype:
    """What to convolve in: the input's dtype, or fp32 where the CPU would emulate it (nearer to fp64, and faster)."""
    return torch.float32 if input.device.type == "cpu" and input.dtype in _EMULATED else input.dtype


def in_arithmetic_type(
    run: Callable[[Tensor, tuple[Tensor | None, ...], Epilogue], Tensor],
    input: Tensor,
    weights: tuple[Tensor | None, ...],
    arguments: Epilogue,
) -> Tensor:
    """run(input, weights, arguments) in the dtype that the processor has; the result in the input's dtype."""
    dtype = arithmetic_type(input)
    if dtype == input.dtype:
        return run(input, weights, arguments)
    residual = arguments.residual
    arguments = arguments._replace(residual=None if residual is None else residual.to(dtype))
    weights = tuple(w if w is None else w.to(dtype) for w in weights)
    return run(input.to(dtype), weights, arguments).to(input.dtype)
