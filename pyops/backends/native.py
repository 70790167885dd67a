"""Backend `native`: libatrous.so, the convolution and its epilogue in one C++ call, without Python or a JIT.

On a CPU, a 3x3 convolution of stride 1 and any dilation runs as a Winograd convolution, F(2x2, 3x3), when it is frozen
(fused with its epilogue) and, from TRAINING_PIXELS on, in training. Any other convolution is torch's own (oneDNN), by
design: what `native` adds to it is the epilogue in place, in the same C++ call, or in a second one for a small output.
On CUDA every convolution is a kernel of the library, which multiplies fp32 as tf32, fused with its epilogue unless that
draws. A convolution that no kernel computes is refused with the reasons; csrc/cuda/conv/heuristics.cpp has them.
Gradients of convolutions are torch's own, but for Winograd's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .. import ops, tuning
from ..core.layout import channels_last, memory_format
from ..core.spec import Epilogue, Spec
from ..core.torch_compat import constant, outside_modes
from ..ops import device_support
from . import aten
from .aten import compute_dtype, in_compute_dtype

name = "native"
one_launch_statistics = False


def available() -> list[str]:
    return [] if ops.library_error is None else [ops.library_error]


def reasons(input: Tensor, weight: Tensor | None, spec: Spec | None) -> list[str]:
    problems = available()
    if input.device.type not in ("cpu", "cuda", "meta"):
        problems.append(f"input: expected a CPU or CUDA tensor, got one on {input.device}")
    elif input.is_cuda and not problems:
        problems += device_support.native_reasons(input.device)
        if weight is not None and spec is not None and not problems:
            problems += _cuda_reasons(input, weight, spec)
    return problems


def _cuda_reasons(input: Tensor, weight: Tensor, spec: Spec) -> list[str]:
    """Reasons why no CUDA kernel computes a convolution. If a size is symbolic, the operator itself raises them."""
    problems = []
    if input.dtype == torch.float32 and not tuning.tf32():
        expected = "tf32 (torch.backends.cudnn.conv.fp32_precision) or a 16-bit dtype"
        problems.append(f"input: expected {expected}, got float32 with ieee precision")
    if tuning.all_ints((*input.shape, *weight.shape)):
        nhwc = memory_format(input, weight) == torch.channels_last
        problems += _kernel_reasons(input.dtype, nhwc, input.shape, weight.shape, *spec)
    return problems


@constant
def _kernel_reasons(*call) -> tuple[str, ...]:
    return _ask_library(*call)


@lru_cache(maxsize=4096)  # an eager model asks in every call
def _ask_library(*call) -> tuple[str, ...]:
    with outside_modes():
        return tuple(filter(None, torch.ops.atrous._conv_reasons(*call).split("; ")))


def primitive(name: str, x: Tensor) -> Callable:
    return aten.operator(name)


def epilogue(z: Tensor, arguments: Epilogue) -> Tensor:
    return torch.ops.atrous._epilogue(z, *arguments)


def conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    def run(input, weights, arguments):
        if aten.relu_alone(input, arguments):
            return torch.relu_(aten.convolution(input, *weights, spec))
        if _is_small(input, weights[0], spec):
            return epilogue(aten.convolution(input, *weights, spec), arguments)
        return torch.ops.atrous._conv_epilogue(input, *weights, *spec, *arguments)

    return in_compute_dtype(run, input, (weight, bias), arguments)


SMALL = 2**16  # elements


def _is_small(input: Tensor, weight: Tensor, spec: Spec) -> bool:
    """True if a second y costs less than one call in C++ does, whose lists of integers take 2 us to pass."""
    if input.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    height, width = spec.output_size(input.shape[2:], weight.shape[2:])
    size = input.shape[0] * weight.shape[0] * height * width
    return tuning.all_ints((size,)) and size <= SMALL


def pack_reasons(input: Tensor, weight: Tensor, spec: Spec) -> list[str]:
    """The constraints of the Winograd convolution, stated here only."""
    problems = []
    if input.device.type != "cpu":
        problems.append(f"device: expected cpu, got {input.device}")
    if tuple(weight.shape[2:]) != (3, 3):
        problems.append(f"kernel: expected (3, 3), got {tuple(weight.shape[2:])}")
    if spec.stride != (1, 1):
        problems.append(f"stride: expected (1, 1), got {spec.stride}")
    if spec.groups != 1:
        problems.append(f"groups: expected 1, got {spec.groups}")
    least = LEAST_CHANNELS if max(spec.dilation) == 1 else LEAST_DILATED_CHANNELS
    if min(weight.shape[:2]) < least:
        problems.append(f"channels: expected at least {least} in and out, got {weight.shape[1]} and {weight.shape[0]}")
    if compute_dtype(input) != torch.float32:
        problems.append(f"dtype: expected one that this processor multiplies in fp32, got {input.dtype}")
    if not problems and max(spec.dilation) > 1 and tuning.all_ints(input.shape):
        winograd, direct = _multiplications(input, spec)
        if winograd > LARGEST_FRACTION * direct:
            problems.append(
                f"dilation: expected one with at most {LARGEST_FRACTION} of a direct convolution's multiplications, "
                f"got {winograd} of {direct} for dilation {spec.dilation} and an input of {tuple(input.shape[2:])}"
            )
    return problems


# Measured on AVX-512: bench/results/NOTES.md. With fewer channels the transforms take longer than they save.
LEAST_CHANNELS, LEAST_DILATED_CHANNELS = 24, 64
LARGEST_FRACTION = 0.9


def _multiplications(input: Tensor, spec: Spec) -> tuple[int, int]:
    """For a 3x3 convolution of stride 1, an image and a pair of channels: Winograd's, and a direct convolution's.

    A tile of 2x2 outputs, which lie a dilation apart, takes 16. A direct convolution, oneDNN's at least, leaves out the
    padding, where a large dilation has most of its taps; the tiles have half of their outputs beyond the map then.
    """
    winograd, direct = 16, 1
    for size, padding, rate in zip(input.shape[2:], spec.padding, spec.dilation):
        output = size + 2 * padding - 2 * rate
        length, longer = divmod(output, rate)  # `longer` of the `rate` phases have one output more
        winograd *= longer * ((length + 2) // 2) + (rate - longer) * ((length + 1) // 2)
        starts = [padding - tap * rate for tap in range(3)]
        direct *= sum(max(0, min(output, size + start) - max(0, start)) for start in starts)
    return winograd, direct


def pack_key(input: Tensor, weight: Tensor, spec: Spec) -> tuple:
    return (input.device.type, input.is_cuda and channels_last(input), not pack_reasons(input, weight, spec))


def pack(input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """The fp32 Winograd transform of the weight; on CUDA the weight in the layout that the kernels read."""
    if not pack_reasons(input, weight, spec):
        return torch.ops.atrous._winograd_weight(weight)
    return weight.contiguous(memory_format=memory_format(input, weight)) if input.is_cuda else weight


def packed_conv_epilogue(
    input: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
) -> Tensor:
    if packed.shape == weight.shape:
        return conv_epilogue(input, packed, bias, spec, arguments)
    layout, nhwc, residual = memory_format(input, weight), torch.channels_last, arguments.residual
    if residual is not None:
        arguments = arguments._replace(residual=residual.contiguous(memory_format=nhwc))
    geometry = weight.shape[0], bias, spec.padding, spec.dilation
    y = torch.ops.atrous._winograd_epilogue(input.contiguous(memory_format=nhwc), packed, *geometry, *arguments)
    return y.contiguous(memory_format=layout)


# In training, 3x3 convolutions of stride 1 and their input gradients are Winograd convolutions as well.

TRAINING_PIXELS = 512  # over all images; with fewer, transforming the weight in each call costs what Winograd saves


def _winograd(input: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format) -> bool:
    """True if a convolution whose weight changes between calls runs as Winograd; its output is then channels_last."""
    if layout != torch.channels_last or pack_reasons(input, weight, spec):
        return False
    return input.shape[0] * input.shape[2] * input.shape[3] >= TRAINING_PIXELS  # last: a symbolic size gets a guard


def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    if input.is_cuda:
        return conv_epilogue(input, weight, bias, spec, Epilogue())
    if not _winograd(input, weight, spec, memory_format(input)):
        return aten.convolution(input, weight, bias, spec)
    transformed = torch.ops.atrous._winograd_weight(weight)
    geometry = weight.shape[0], bias, spec.padding, spec.dilation
    dense = input.contiguous(memory_format=torch.channels_last)  # a slice is not
    return torch.ops.atrous._winograd_epilogue(dense, transformed, *geometry, *Epilogue())


convolution_statistics = aten.with_statistics(convolution, primitive)


def convolution_backward(
    grad: Tensor, input: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format, needed: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx is the convolution of grad with the weight rotated by 180 degrees and its two channel axes swapped."""
    height, width = (2 * d - p for d, p in zip(spec.dilation, spec.padding))
    padding = height, width
    if not (needed[0] and min(padding) >= 0 and _winograd(grad, weight, spec._replace(padding=padding), layout)):
        return aten.convolution_backward(grad, input, weight, spec, layout, needed)
    rotated = torch.ops.atrous._winograd_weight(weight, True)
    geometry = weight.shape[1], None, padding, spec.dilation
    dx = torch.ops.atrous._winograd_epilogue(grad, rotated, *geometry, *Epilogue())
    return dx, *aten.convolution_backward(grad, input, weight, spec, layout, [False, *needed[1:]])[1:]
