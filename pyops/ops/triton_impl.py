"""The primitives torch.ops.atrous_triton._*: Triton kernels where Triton runs, else torch.ops.atrous or plain torch."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from .. import tuning
from ..core.layout import memory_format
from ..core.spec import Epilogue, Spec
from . import device_support, eager

triton_installed = importlib.util.find_spec("triton") is not None


_PLAIN = {Tensor, torch.nn.Parameter, type(None), bool, int, float, str, tuple, list}
# Dispatch keys of ordinary calls, in inference mode and under autocast too: none of them observes operators.
_ORDINARY_KEYS = functools.reduce(
    torch._C.DispatchKeySet.__or__,
    (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in
     ("BackendSelect", "ADInplaceOrView", "AutocastCPU", "AutocastCUDA")),
).raw_repr()  # fmt: skip


def observed(*arguments) -> bool:
    """True if operator calls are observed: by a compiler, tracer, mode, transform, profiler or tensor subclass.

    If not, a kernel is launched without the dispatcher, which takes 10 to 15 us of host time to pass as many arguments
    as ours to Python and back.
    """
    return (
        torch.compiler.is_compiling()
        or not _PLAIN.issuperset(map(type, arguments))
        or bool(torch._C._dispatch_tls_local_include_set().raw_repr() & ~_ORDINARY_KEYS)
        or torch.autograd._profiler_enabled()
    )


def primitive(name: str) -> Callable:
    """The operator of this name if its call is observed, else the function of this module that implements it."""

    def run(*arguments):
        return (getattr(torch.ops.atrous_triton, name) if observed(*arguments) else globals()[name])(*arguments)

    return run


def capturing(x: Tensor) -> bool:
    """True while a CUDA graph is captured: a kernel that is not compiled yet cannot be launched then."""
    return x.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


@tuning.constant
def triton_runs(device: torch.device) -> bool:
    """True if Triton is installed and the GPU is sm_80 or newer."""
    return triton_installed and not device_support.too_old(device)


@tuning.constant
def atrous_runs(device: torch.device) -> bool:
    """True if torch.ops.atrous runs on this GPU: in plain torch, or in C++ that was built for it."""
    return not device_support.arch_list() or not device_support.native_reasons(device)


def pointwise(name: str) -> Callable:
    """The launcher of the Triton kernel of a primitive without a convolution, on any device."""
    from ..triton_kernels.pointwise import backward, forward

    if name in ("_epilogue", "_epilogue_again"):
        return forward.epilogue
    return getattr(backward, name.removeprefix("_"))


def _fallback(name: str, device: torch.device) -> Callable:
    """The implementation where Triton does not run: torch.ops.atrous, or plain torch."""
    return getattr(torch.ops.atrous if atrous_runs(device) else eager, name)


def _with_fallback(name: str):
    """The kernel, or the fallback where Triton does not run or a graph is captured before the kernel is compiled."""

    def run(*arguments):
        device = arguments[0].device
        if not triton_runs(device):
            return _fallback(name, device)(*arguments)
        try:
            return pointwise(name)(*arguments)
        except RuntimeError as error:
            from ..triton_kernels.launch import NotCompiled  # imported here, so that no other call pays for it

            if not isinstance(error, NotCompiled):
                raise
            return _fallback(name, device)(*arguments)

    return run


_epilogue, _epilogue_again, _epilogue_reduce, _epilogue_backward, _statistics = map(
    _with_fallback, ("_epilogue", "_epilogue_again", "_epilogue_reduce", "_epilogue_backward", "_statistics")
)


def triton_conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    """`_conv_epilogue` in Triton, with the measured config, else the predicted one. Raises NotCompiled."""
    measured = tuning.measured_config(input, weight, spec, arguments.residual is not None)
    geometry, layout = (spec.stride, spec.padding, spec.dilation, spec.groups), memory_format(input, weight)
    run = _convolutions().conv_epilogue
    return run(input, weight, bias, *geometry, *arguments, memory_format=layout, measured=measured)


def triton_conv_statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor, Tensor]:
    """`_conv_statistics` in Triton. Raises NotCompiled."""
    geometry = spec.stride, spec.padding, spec.dilation, spec.groups
    run = _convolutions().conv_statistics
    return run(input, weight, bias, *geometry, memory_format=memory_format(input, weight))


@functools.lru_cache
def _convolutions() -> SimpleNamespace:
    from ..triton_kernels.conv.forward import conv_epilogue
    from ..triton_kernels.conv.statistics import conv_statistics

    return SimpleNamespace(conv_epilogue=conv_epilogue, conv_statistics=conv_statistics)


def _spec(stride, padding, dilation, groups) -> Spec:
    """The geometry, whose pairs an operator receives as lists."""
    return Spec(tuple(stride), tuple(padding), tuple(dilation), groups)


def _conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *arguments) -> Tensor:
    if triton_runs(input.device):
        spec = _spec(stride, padding, dilation, groups)
        return triton_conv_epilogue(input, weight, bias, spec, Epilogue(*arguments))
    run = _fallback("_conv_epilogue", input.device)
    return run(input, weight, bias, stride, padding, dilation, groups, *arguments)


def _conv_statistics(input, weight, bias, *geometry) -> tuple[Tensor, Tensor, Tensor]:
    if triton_runs(input.device):
        return triton_conv_statistics(input, weight, bias, _spec(*geometry))
    return _fallback("_conv_statistics", input.device)(input, weight, bias, *geometry)
