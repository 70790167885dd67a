"""Backend `native`: libatrous.so, the convolution and its epilogue in one C++ call, without Python or a JIT.

On a CPU, a 3x3 convolution of stride 1 and any dilation runs as a Winograd convolution where that takes less time
(winograd.py): fused with its epilogue in eval, alone in training, and so do its gradients. Any other convolution is
torch's own (oneDNN), by design: what `native` adds to it is the epilogue in place, in the same C++ call, or in a second
one for a small output.
On CUDA every convolution is a kernel of the library, which multiplies fp32 as tf32, fused with its epilogue unless that
draws. A convolution that no kernel computes is refused with the reasons; csrc/cuda/conv/heuristics.cpp has them.
Other gradients of convolutions are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .. import ops, tuning
from ..core.layout import channels_last, memory_format
from ..core.spec import Epilogue, Spec
from ..core.torch_compat import constant, is_compiling, outside_modes
from ..ops import device_support
from . import aten, winograd
from .aten import in_compute_dtype

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


@lru_cache(maxsize=1024)  # an eager model asks in every call
def _ask_library(*call) -> tuple[str, ...]:
    with outside_modes():
        return tuple(filter(None, torch.ops.atrous._conv_reasons(*call).split("; ")))


def primitive(name: str, x: Tensor) -> Callable:
    return aten.operator(name)


def epilogue(z: Tensor, arguments: Epilogue) -> Tensor:
    return torch.ops.atrous._epilogue(z, *arguments)


def conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    def run(input, weights, arguments):
        small = _is_small(input, weights[0], spec)
        tile = None if small else _changing_tile(input, weights[0], spec, memory_format(input, weights[0]))
        if tile is not None:
            return _winograd(input, None, tile, *weights, spec, arguments)
        if aten.relu_alone(input, arguments):
            return torch.relu_(aten.convolution(input, *weights, spec))
        if small:
            return epilogue(aten.convolution(input, *weights, spec), arguments)
        return torch.ops.atrous._conv_epilogue(input, *weights, *spec, *arguments)

    return in_compute_dtype(run, input, (weight, bias), arguments)


SMALL = 2**16  # elements


def _is_small(input: Tensor, weight: Tensor, spec: Spec) -> bool:
    """True if a second y costs less than one call in C++ does, whose lists of integers take 2 us to pass."""
    if input.device.type != "cpu" or is_compiling():
        return False
    height, width = spec.output_size(input.shape[2:], weight.shape[2:])
    size = input.shape[0] * weight.shape[0] * height * width
    return tuning.all_ints((size,)) and size <= SMALL


pack_reasons = winograd.reasons


def pack_key(input: Tensor, weight: Tensor, spec: Spec) -> tuple:
    return (input.device.type, input.is_cuda and channels_last(input), winograd.tile(input, weight, spec))


def pack(input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """The Winograd transform of the weight; on CUDA the weight in the layout that the kernels read."""
    tile = winograd.tile(input, weight, spec)
    if tile is not None:
        return torch.ops.atrous._winograd_weight(weight, False, tile[:2], tile.int16)
    return weight.contiguous(memory_format=memory_format(input, weight)) if input.is_cuda else weight


def packed_normalizes(input: Tensor, weight: Tensor, spec: Spec) -> bool:
    return winograd.tile(input, weight, spec) is not None


def packed_conv_epilogue(
    input: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
) -> Tensor:
    if packed.shape == weight.shape:
        return conv_epilogue(input, packed, bias, spec, arguments)
    return _winograd(input, packed, winograd.tile_of(packed), weight, bias, spec, arguments)


def _winograd(
    input: Tensor, packed: Tensor | None, tile: winograd.Tile, weight: Tensor, bias: Tensor | None, spec: Spec,
    arguments: Epilogue,
) -> Tensor:  # fmt: skip
    """packed: the transformed weight; None: this call transforms it."""
    layout, nhwc, residual = memory_format(input, weight), torch.channels_last, arguments.residual
    if residual is not None:
        arguments = arguments._replace(residual=residual.contiguous(memory_format=nhwc))
    geometry = False, tile[:2], tile.int16, bias, spec.padding, spec.dilation
    y = torch.ops.atrous._winograd_epilogue(input.contiguous(memory_format=nhwc), weight, packed, *geometry, *arguments)
    return y.contiguous(memory_format=layout)


def _changing_tile(input: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format) -> winograd.Tile | None:
    """The tile of a convolution whose weight changes between calls; its output is then channels_last."""
    return winograd.tile(input, weight, spec, changing=True) if layout == torch.channels_last else None


def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    if input.is_cuda:
        return conv_epilogue(input, weight, bias, spec, Epilogue())
    tile = _changing_tile(input, weight, spec, memory_format(input))
    if tile is None:
        return aten.convolution(input, weight, bias, spec)
    return _winograd(input, None, tile, weight, bias, spec, Epilogue())


convolution_statistics = aten.with_statistics(convolution, primitive)


def convolution_backward(
    grad: Tensor, input: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format, needed: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients that Winograd's transforms compute in less time are theirs, the others torch's."""
    dx = _input_gradient(grad, weight, spec, layout) if needed[0] else None
    dw = _weight_gradient(grad, input, weight, spec, layout) if needed[1] else None
    left = [needed[0] and dx is None, needed[1] and dw is None, needed[2]]
    rest = aten.convolution_backward(grad, input, weight, spec, layout, left) if any(left) else (None, None, None)
    return dx if rest[0] is None else rest[0], dw if rest[1] is None else rest[1], rest[2]


def _input_gradient(grad: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format) -> Tensor | None:
    """dx is the convolution of grad with the weight rotated by 180 degrees and its two channel axes swapped."""
    height, width = (2 * d - p for d, p in zip(spec.dilation, spec.padding))
    if min(height, width) < 0:
        return None
    tile = _changing_tile(grad, weight.transpose(0, 1), spec._replace(padding=(height, width)), layout)
    if tile is None:
        return None
    geometry = None, True, tile[:2], tile.int16, None, (height, width), spec.dilation
    return torch.ops.atrous._winograd_epilogue(grad, weight, *geometry, *Epilogue())


def _weight_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format
) -> Tensor | None:
    tile = winograd.gradient_tile(input, weight, spec) if layout == torch.channels_last else None
    if tile is None:
        return None
    return torch.ops.atrous._winograd_weight_gradient(grad, input, spec.padding, spec.dilation, tile[:2])
