"""Row `native`: our C++ library, without Python or a JIT: the convolution and its epilogue in one call.

On CPU a 3x3 convolution of stride 1 and any dilation runs as a Winograd convolution, F(2x2, 3x3), where it is frozen
(fused with its epilogue) and in training from a size on; everything else is aten's, with the C++ epilogue in place.
On CUDA, where the library is built for the card, a channels_last convolution without groups and its epilogue are one
launch (csrc/cuda/conv/problem.h has what it takes), which multiplies fp32 as tf32; any other, fp32 where torch asks for
ieee, and those of training are aten's, with everything behind them in C++.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops, tuning
from ..core.layout import channels_last, memory_format
from ..core.spec import Epilogue, Spec
from ..ops import device_support
from . import training
from .arithmetic import arithmetic_type, in_arithmetic_type

name = "native"


def available() -> list[str]:
    return [] if ops.library_error is None else [ops.library_error]


def reasons(input: Tensor, weight: Tensor | None, spec: Spec | None) -> list[str]:
    found = available()
    if input.device.type not in ("cpu", "cuda", "meta"):
        found.append(f"input: expected a CPU or CUDA tensor, got one on {input.device}")
    elif input.is_cuda and not found:
        found += device_support.lacks(input.device)
    return found


def primitive(name: str, x: Tensor) -> Callable:
    """Who computes a primitive without a convolution for tensors like x."""
    return getattr(torch.ops.atrous, name)


def epilogue(z: Tensor, arguments: Epilogue) -> Tensor:
    return torch.ops.atrous._epilogue(z, *arguments)


def conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    if input.is_cuda and input.dtype == torch.float32 and not tuning.tf32():
        return epilogue(training.convolution(input, weight, bias, spec), arguments)

    def run(input, weights, arguments):
        geometry = (spec.stride, spec.padding, spec.dilation, spec.groups)
        return torch.ops.atrous._conv_epilogue(input, *weights, *geometry, *arguments)

    return in_arithmetic_type(run, input, (weight, bias), arguments)


def pack_reasons(input: Tensor, weight: Tensor, spec: Spec) -> list[str]:
    """Why a frozen convolution does not run as a Winograd convolution: the one statement of its constraints."""
    found = []
    if input.device.type != "cpu":
        found.append(f"device: expected cpu, got {input.device}")
    if tuple(weight.shape[2:]) != (3, 3):
        found.append(f"kernel: expected (3, 3), got {tuple(weight.shape[2:])}")
    if spec.stride != (1, 1):
        found.append(f"stride: expected (1, 1), got {spec.stride}")
    if spec.groups != 1:
        found.append(f"groups: expected 1, got {spec.groups}")
    if weight.shape[0] < 16 or weight.shape[1] < 16:
        found.append(f"channels: expected at least 16 in and out, got {weight.shape[1]} and {weight.shape[0]}")
    if arithmetic_type(input) != torch.float32:
        found.append(f"dtype: expected one that this processor multiplies in fp32, got {input.dtype}")
    return found


def pack_key(input: Tensor, weight: Tensor, spec: Spec) -> tuple:
    """What a pack depends on besides the weight."""
    return (input.device.type, input.is_cuda and channels_last(input), not pack_reasons(input, weight, spec))


def pack(input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """The weight as `packed_conv_epilogue` wants it: Winograd-transformed, fp32; on CUDA as the kernels read it."""
    if not pack_reasons(input, weight, spec):
        return torch.ops.atrous._winograd_weight(weight)
    return weight.contiguous(memory_format=memory_format(input, weight)) if input.is_cuda else weight


def packed_conv_epilogue(
    input: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
) -> Tensor:
    """conv_epilogue with the weight in both forms."""
    if packed.shape == weight.shape:
        return conv_epilogue(input, packed, bias, spec, arguments)
    layout, last, residual = memory_format(input, weight), torch.channels_last, arguments.residual
    if residual is not None:
        arguments = arguments._replace(residual=residual.contiguous(memory_format=last))
    geometry = weight.shape[0], bias, spec.padding, spec.dilation
    y = torch.ops.atrous._winograd_epilogue(input.contiguous(memory_format=last), packed, *geometry, *arguments)
    return y.contiguous(memory_format=layout)


# Training: 3x3 convolutions of stride 1 are Winograd convolutions here too, and so are their input gradients.

TRAINING_PIXELS = 512  # of all images: below it transforming the weight in each call takes what the products save


def _winograd(input: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format) -> bool:
    """Whether a convolution whose weight changes from call to call is one; its output is channels_last."""
    enough = input.shape[0] * input.shape[2] * input.shape[3] >= TRAINING_PIXELS
    return enough and layout == torch.channels_last and not pack_reasons(input, weight, spec)


def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    """z = conv2d(x, w) + b."""
    if not _winograd(input, weight, spec, memory_format(input)):
        return training.convolution(input, weight, bias, spec)
    transformed = torch.ops.atrous._winograd_weight(weight)
    geometry = weight.shape[0], bias, spec.padding, spec.dilation
    return torch.ops.atrous._winograd_epilogue(input, transformed, *geometry, *Epilogue())


convolution_statistics = training.with_statistics(convolution, primitive)


def convolution_backward(
    grad: Tensor, input: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format, needed: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of input, weight and bias, those that are needed.

    dx is the convolution of the gradient with the weight turned by 180 degrees, its channels changed over.
    """
    padding = tuple(2 * d - p for d, p in zip(spec.dilation, spec.padding))
    if not (needed[0] and min(padding) >= 0 and _winograd(grad, weight, spec, layout)):
        return training.convolution_backward(grad, input, weight, spec, layout, needed)
    turned = torch.ops.atrous._winograd_weight(weight, True)
    geometry = weight.shape[1], None, padding, spec.dilation
    dx = torch.ops.atrous._winograd_epilogue(grad, turned, *geometry, *Epilogue())
    return dx, *training.convolution_backward(grad, input, weight, spec, layout, [False, *needed[1:]])[1:]
