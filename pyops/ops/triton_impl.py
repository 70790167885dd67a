"""The primitives torch.ops.atrous_triton._*: Triton kernels where Triton runs, else torch.ops.atrous or plain torch,
after torch's own convolution.

Functions take Spec and Epilogue whole; operators, and the implementations that are registered for them, take the flat
arguments of their schemas.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import reference, tuning
from ..core.layout import memory_format
from ..core.spec import Epilogue, Spec, flat
from ..core.torch_compat import constant, is_compiling, operators_observed
from . import device_support, eager, fake

triton_installed = importlib.util.find_spec("triton") is not None
_PLAIN = {Tensor, torch.nn.Parameter, type(None), bool, int, float, str, tuple, list}


def observed(*arguments) -> bool:
    """True if operator calls are observed: by a compiler, tracer, mode, transform, profiler or tensor subclass.

    If not, a kernel is launched without the dispatcher, which takes 10 to 15 us of host time to pass as many arguments
    as ours to Python and back.
    """
    return is_compiling() or not _PLAIN.issuperset(map(type, arguments)) or operators_observed()


def capturing(x: Tensor) -> bool:
    """True while a CUDA graph is captured: a kernel that is not compiled yet cannot be launched then."""
    return x.is_cuda and not is_compiling() and torch.cuda.is_current_stream_capturing()


@constant
def triton_runs(device: torch.device) -> bool:
    """True if Triton is installed and the GPU is sm_80 or newer."""
    return triton_installed and not device_support.too_old(device)


@constant
def atrous_runs(device: torch.device) -> bool:
    """True if torch.ops.atrous runs on this GPU: in plain torch, or in C++ that was built for it."""
    return not device_support.arch_list() or not device_support.native_reasons(device)


@functools.cache
def launchers() -> dict[str, Callable[..., Any]]:
    """primitive -> the launcher of its Triton kernel, imported when first needed: Triton may not be installed."""
    from ..triton_kernels.conv.forward import conv_epilogue
    from ..triton_kernels.conv.statistics import conv_statistics
    from ..triton_kernels.pointwise.backward import epilogue_backward, epilogue_reduce, statistics
    from ..triton_kernels.pointwise.forward import epilogue

    def measured_conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, e: Epilogue) -> Tensor:
        """With the measured config, else the predicted one."""
        measured = tuning.measured_config(input, weight, spec, e.residual is not None)
        layout = memory_format(input, weight)
        return conv_epilogue(input, weight, bias, spec, e, memory_format=layout, measured=measured)

    def conv_statistics_in_layout(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec):
        return conv_statistics(input, weight, bias, spec, memory_format=memory_format(input, weight))

    def statistics_epilogue(z: Tensor, e: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = statistics(z)
        return epilogue(z, e._replace(mean=mean, var=var)), mean, var

    def epilogue_gradients(grad: Tensor, z: Tensor, batch_stats, need_z, need_residual, need_vectors, e: Epilogue):
        vectors: list[Tensor | None] = [None] * 3
        means, batch_stats = None, batch_stats and need_z
        if batch_stats or need_vectors:
            sums = epilogue_reduce(grad, z, e)
            means = sums[:2] / max(z[:, 0].numel(), 1) if batch_stats else None
            vectors = reference.vector_gradients(sums, e) if need_vectors else vectors
        both = epilogue_backward(grad, z, means, need_z, need_residual, e)
        return *both, *(z.new_empty(0) if v is None else v for v in vectors)

    return {
        "_epilogue": epilogue, "_epilogue_again": epilogue, "_epilogue_reduce": epilogue_reduce,
        "_epilogue_backward": epilogue_backward, "_epilogue_gradients": epilogue_gradients, "_statistics": statistics,
        "_statistics_epilogue": statistics_epilogue,
        "_conv_epilogue": measured_conv_epilogue, "_conv_statistics": conv_statistics_in_layout,
    }  # fmt: skip


def primitive(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """A primitive: its operator of torch.ops.atrous_triton if the call is observed, else `run`: launch or run_pass.

    On a CPU, in Triton's interpreter, there is no operator. While a CUDA graph is captured `run` is called, since it
    decides what to do if the kernel is not compiled.
    """

    def call(x: Tensor, *arguments):
        if x.is_meta or (x.is_cuda and observed(*flat(x, *arguments)) and not capturing(x)):
            return getattr(torch.ops.atrous_triton, name)(*flat(x, *arguments))
        return run(name, x, *arguments)

    return call


def launch(name: str, *arguments):
    """A primitive in Triton. Raises NotCompiled."""
    return launchers()[name](*arguments)


def run_pass(name: str, x: Tensor, *arguments):
    """A primitive without a convolution, in Triton if it runs here and, while a graph is captured, is compiled."""
    if triton_runs(x.device):
        try:
            return launch(name, x, *arguments)
        except RuntimeError as error:
            from ..triton_kernels.launch import NotCompiled  # imported here, so that no other call pays for it

            if not isinstance(error, NotCompiled):
                raise
    return getattr(torch.ops.atrous if atrous_runs(x.device) else eager, name)(*flat(x, *arguments))


def _torch_convolution(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    """Where Triton does not run; torch.ops.atrous does not compute every convolution on a GPU."""
    return fake._conv(input, weight, bias, *spec).contiguous(memory_format=memory_format(input, weight))


# The operators' implementations.


def _epilogue(z: Tensor, *epilogue) -> Tensor:
    return run_pass("_epilogue", z, Epilogue(*epilogue))


def _epilogue_again(z: Tensor, *epilogue) -> Tensor:
    return run_pass("_epilogue_again", z, Epilogue(*epilogue))


def _epilogue_reduce(grad: Tensor, z: Tensor, *epilogue) -> Tensor:
    return run_pass("_epilogue_reduce", grad, z, Epilogue(*epilogue))


def _epilogue_backward(grad: Tensor, z: Tensor, means, need_z, need_residual, *epilogue) -> tuple[Tensor, Tensor]:
    return run_pass("_epilogue_backward", grad, z, means, need_z, need_residual, Epilogue(*epilogue))


def _epilogue_gradients(grad: Tensor, z: Tensor, batch_stats, need_z, need_residual, need_vectors, *epilogue):
    needs = batch_stats, need_z, need_residual, need_vectors
    return run_pass("_epilogue_gradients", grad, z, *needs, Epilogue(*epilogue))


def _statistics_epilogue(z: Tensor, *epilogue) -> tuple[Tensor, Tensor, Tensor]:
    return run_pass("_statistics_epilogue", z, Epilogue(*epilogue))


def _statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    return run_pass("_statistics", z)


def _conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *epilogue) -> Tensor:
    operands, e = (input, weight, bias, Spec.of(stride, padding, dilation, groups)), Epilogue(*epilogue)
    if triton_runs(input.device):
        return launch("_conv_epilogue", *operands, e)
    return run_pass("_epilogue", _torch_convolution(*operands), e)


def _conv_statistics(input, weight, bias, *geometry) -> tuple[Tensor, Tensor, Tensor]:
    operands = input, weight, bias, Spec.of(*geometry)
    if triton_runs(input.device):
        return launch("_conv_statistics", *operands)
    z = _torch_convolution(*operands)
    return z, *run_pass("_statistics", z)
