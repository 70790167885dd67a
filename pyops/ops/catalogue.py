"""Operators that convolve, and the places of weight, geometry and epilogue among their arguments.

For tools that observe the operators of a model: the list of its convolutions, its FLOP count, the cost of a training
step. A tensor may be given as its shape, as torch's FlopCounterMode gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..core.spec import Epilogue, Spec
from ..core.torch_compat import onednn_convolution

Sizes = tuple[int, ...]


class ConvCall(NamedTuple):
    """One call. weight: (C_out, C / groups, kH, kW)."""

    weight: Sizes
    spec: Spec
    epilogue: Epilogue = Epilogue()


def _aten(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups) -> ConvCall | None:
    shape = _shape(weight)
    return None if transposed or len(shape) != 4 else ConvCall(shape, Spec.of(stride, padding, dilation, groups))


def _fused(input, weight, bias, stride, padding, dilation, groups, *epilogue) -> ConvCall:
    return ConvCall(_shape(weight), Spec.of(stride, padding, dilation, groups), Epilogue(*epilogue))


def _winograd(input, weight, transformed, turned, tile, int16, bias, padding, dilation, *epilogue) -> ConvCall:
    shape = _shape(weight)
    return ConvCall(
        (shape[1], shape[0], 3, 3) if turned else shape, Spec.of((1, 1), padding, dilation), Epilogue(*epilogue)
    )


def _onednn(input, packed, bias, padding, stride, dilation, groups, *activation) -> ConvCall:
    return ConvCall(_shape(packed), Spec.of(stride, padding, dilation, groups))


def _shape(tensor) -> Sizes:
    return tuple(getattr(tensor, "shape", tensor))


# operator -> a function of its arguments; it returns None for a call that is no 2-D convolution
CONVOLUTIONS: dict[Any, Callable[..., ConvCall | None]] = {
    torch.ops.aten.convolution.default: _aten,
    torch.ops.atrous._conv_epilogue.default: _fused,
    torch.ops.atrous._conv_statistics.default: _fused,
    torch.ops.atrous._winograd_epilogue.default: _winograd,
    torch.ops.atrous_triton._conv_epilogue.default: _fused,
    torch.ops.atrous_triton._conv_statistics.default: _fused,
}
if onednn_convolution is not None:  # called by backend `library` in a frozen model on a CPU
    CONVOLUTIONS[onednn_convolution.default] = _onednn
# Operators whose first argument is z and whose others are an Epilogue
EPILOGUES = (torch.ops.atrous._epilogue.default, torch.ops.atrous_triton._epilogue.default)
