"""The primitives torch.ops.atrous_triton._*: the Triton kernels where Triton runs, else what torch.ops.atrous has."""

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

triton_found = importlib.util.find_spec("triton") is not None


_PLAIN = {Tensor, torch.nn.Parameter, type(None), bool, int, float, str, tuple, list}
# Where the dispatcher goes on every call, in inference mode and under autocast too: to nobody who looks at operators.
_USUAL = functools.reduce(
    torch._C.DispatchKeySet.__or__,
    (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in
     ("BackendSelect", "ADInplaceOrView", "AutocastCPU", "AutocastCUDA")),
).raw_repr()  # fmt: skip


def observed(*arguments) -> bool:
    """Whether anybody looks at operators: a compiler, a tracer, a mode, a transform, the profiler, a tensor's subclass.

    Where nobody does a kernel is launched without the dispatcher, which takes 10 to 15 us of host time to hand as many
    arguments as ours to Python and back.
    """
    return (
        torch.compiler.is_compiling()
        or not _PLAIN.issuperset(map(type, arguments))
        or bool(torch._C._dispatch_tls_local_include_set().raw_repr() & ~_USUAL)
        or torch.autograd._profiler_enabled()
    )


def primitive(name: str) -> Callable:
    """The operator of this name where anybody observes, else the function below that is behind it."""

    def run(*arguments):
        return (getattr(torch.ops.atrous_triton, name) if observed(*arguments) else globals()[name])(*arguments)

    return run


def capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured: a kernel that is not compiled yet cannot be launched then."""
    return x.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


@tuning.constant
def triton_runs(device: torch.device) -> bool:
    """Whether there is Triton for this card: it is installed, and the card is of sm_80 or newer."""
    return triton_found and not device_support.too_old(device)


@tuning.constant
def atrous_runs(device: torch.device) -> bool:
    """Whether torch.ops.atrous runs on this card: in plain torch, or in C++ that was built for it."""
    return not device_support.arch_list() or not device_support.lacks(device)


def pointwise(name: str) -> Callable:
    """The primitive of this name, one of those without a convolution: launches the kernel, whatever the device."""
    from ..triton_kernels.pointwise import backward as gradients
    from ..triton_kernels.pointwise import forward

    if name in ("_epilogue", "_epilogue_again"):
        return forward.epilogue
    return getattr(gradients, name.removeprefix("_"))


def _elsewhere(name: str, device: torch.device) -> Callable:
    """Who computes it in Triton's place."""
    return getattr(torch.ops.atrous if atrous_runs(device) else eager, name)


def _guarded(name: str):
    """The kernel; another where Triton does not run, or while a graph is captured and it is not compiled yet."""

    def run(*arguments):
        device = arguments[0].device
        if not triton_runs(device):
            return _elsewhere(name, device)(*arguments)
        try:
            return pointwise(name)(*arguments)
        except RuntimeError as error:
            from ..triton_kernels.launch import NotCompiled  # here, so that a call does not pay for it

            if not isinstance(error, NotCompiled):
                raise
            return _elsewhere(name, device)(*arguments)

    return run


_epilogue, _epilogue_again, _epilogue_reduce, _epilogue_backward, _statistics = map(
    _guarded, ("_epilogue", "_epilogue_again", "_epilogue_reduce", "_epilogue_backward", "_statistics")
)


def triton_conv_epilogue(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue) -> Tensor:
    """`_conv_epilogue` by Triton, in the config that was measured, or the predicted one. Raises NotCompiled."""
    measured = tuning.measured_config(input, weight, spec, arguments.residual is not None)
    geometry, layout = (spec.stride, spec.padding, spec.dilation, spec.groups), memory_format(input, weight)
    run = _convolutions().conv_epilogue
    return run(input, weight, bias, *geometry, *arguments, memory_format=layout, measured=measured)


def triton_conv_statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor, Tensor]:
    """`_conv_statistics` by Triton. Raises NotCompiled."""
    geometry = spec.stride, spec.padding, spec.dilation, spec.groups
    run = _convolutions().conv_statistics
    return run(input, weight, bias, *geometry, memory_format=memory_format(input, weight))


@functools.lru_cache
def _convolutions() -> SimpleNamespace:
    from ..triton_kernels.conv.forward import conv_epilogue
    from ..triton_kernels.conv.statistics import conv_statistics

    return SimpleNamespace(conv_epilogue=conv_epilogue, conv_statistics=conv_statistics)


def _spec(stride, padding, dilation, groups) -> Spec:
    """An operator's lists as pairs."""
    return Spec(tuple(stride), tuple(padding), tuple(dilation), groups)


def _conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *arguments) -> Tensor:
    if triton_runs(input.device):
        spec = _spec(stride, padding, dilation, groups)
        return triton_conv_epilogue(input, weight, bias, spec, Epilogue(*arguments))
    run = _elsewhere("_conv_epilogue", input.device)
    return run(input, weight, bias, stride, padding, dilation, groups, *arguments)


def _conv_statistics(input, weight, bias, *geometry) -> tuple[Tensor, Tensor, Tensor]:
    if triton_runs(input.device):
        return triton_conv_statistics(input, weight, bias, _spec(*geometry))
    return _elsewhere("_conv_statistics", input.device)(input, weight, bias, *geometry)
