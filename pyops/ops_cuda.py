"""The primitives torch.ops.atrous_triton._*: the Triton kernels where Triton runs, else what torch.ops.atrous has."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from . import ops_build, ops_plain, tuning
from .layout import memory_format
from .spec import Epilogue, Spec

triton_found = importlib.util.find_spec("triton") is not None


def capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured: a kernel that is not compiled yet cannot be launched then."""
    return x.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


@tuning.constant
def triton_runs(device: torch.device) -> bool:
    """Whether there is Triton for this card: it is installed, and the card is of sm_80 or newer."""
    return triton_found and not ops_build.too_old(device)


@tuning.constant
def atrous_runs(device: torch.device) -> bool:
    """Whether torch.ops.atrous runs on this card: in plain torch, or in C++ that was built for it."""
    return not ops_build.arch_list() or not ops_build.lacks(device)


def pointwise(name: str):
    """The primitive of this name, one of those without a convolution: launches the kernel, whatever the device."""
    from .triton_kernels import gradients
    from .triton_kernels import pointwise as forward

    return {
        "_epilogue": forward.epilogue,
        "_epilogue_again": forward.epilogue,
        "_epilogue_reduce": gradients.epilogue_reduce,
        "_epilogue_backward": gradients.epilogue_backward,
        "_statistics": gradients.statistics,
    }[name]


def _elsewhere(name: str, device: torch.device) -> Callable:
    """Who computes it in Triton's place."""
    return getattr(torch.ops.atrous if atrous_runs(device) else ops_plain, name)


def _guarded(name: str):
    """The kernel; another where Triton does not run, or while a graph is captured and it is not compiled yet."""

    def run(*arguments):
        device = arguments[0].device
        if not triton_runs(device):
            return _elsewhere(name, device)(*arguments)
        from .triton_kernels.launch import NotCompiled

        try:
            return pointwise(name)(*arguments)
        except NotCompiled:
            return _elsewhere(name, device)(*arguments)

    return run


_epilogue, _epilogue_again, _epilogue_reduce, _epilogue_backward, _statistics = map(
    _guarded, ("_epilogue", "_epilogue_again", "_epilogue_reduce", "_epilogue_backward", "_statistics")
)


def triton_conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *arguments) -> Tensor:
    """`_conv_epilogue` by Triton, in the config that was measured, or the predicted one. Raises NotCompiled."""
    from .triton_kernels.conv import conv_epilogue

    geometry, residual = (tuple(stride), tuple(padding), tuple(dilation), groups), Epilogue(*arguments).residual
    measured = tuning.measured_config(input, weight, Spec(*geometry), residual is not None)
    layout = memory_format(input, weight)
    return conv_epilogue(input, weight, bias, *geometry, *arguments, memory_format=layout, measured=measured)


def triton_conv_statistics(input, weight, bias, stride, padding, dilation, groups) -> tuple[Tensor, Tensor, Tensor]:
    """`_conv_statistics` by Triton. Raises NotCompiled."""
    from .triton_kernels.statistics import conv_statistics

    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    return conv_statistics(input, weight, bias, *geometry, memory_format=memory_format(input, weight))


def _conv_epilogue(input, weight, bias, *arguments) -> Tensor:
    run = triton_conv_epilogue if triton_runs(input.device) else _elsewhere("_conv_epilogue", input.device)
    return run(input, weight, bias, *arguments)


def _conv_statistics(input, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    run = triton_conv_statistics if triton_runs(input.device) else _elsewhere("_conv_statistics", input.device)
    return run(input, *arguments)
