"""Backend selection: the backend for a call, or an error with every backend's reasons.

backend="auto" takes the backend that was measured to be the fastest for this call on this device (pyops/tuning; `python
-m atrous tune` measures). Without a measurement it follows a rule, which never makes a model slower than the library's
convolutions:
  CPU   native if it is built, else library; for a frozen convolution native if it runs as Winograd, else library;
  CUDA  library (cuDNN), whose epilogue is Triton's, or native's where Triton does not run.
A backend that is named explicitly never falls back: it runs, or the error lists its reasons.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .. import tuning
from ..core.spec import Spec
from . import library, native, triton
from .base import Backend

_BACKENDS: dict[str, Backend] = {"library": library, "native": native, "triton": triton}
_AUTO = {"cpu": ("native", "library"), "cuda": ("library",)}


def backends() -> dict[str, Backend]:
    """name -> backend."""
    return dict(_BACKENDS)


def available(name: str) -> list[str]:
    """Reasons why a backend cannot run on this machine; empty if it can."""
    return _BACKENDS[name].available()


def reasons(name: str, input: Tensor, weight: Tensor | None = None, spec: Spec | None = None) -> list[str]:
    """Reasons why a backend cannot run this call; empty if it can. weight is None: only the epilogue."""
    return _BACKENDS[name].reasons(input, weight, spec)


def check_name(backend: str) -> None:
    """Raises ValueError unless this is "auto" or the name of a backend."""
    if backend != "auto" and backend not in _BACKENDS:
        raise ValueError(f"backend: expected one of auto, {', '.join(_BACKENDS)}, got {backend!r}")


def compiled_or_library(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """run; if its kernel is not compiled yet and a CUDA graph is being captured, the library's convolution instead."""

    def guarded(*arguments):
        from ..triton_kernels.launch import NotCompiled

        try:
            return run(*arguments)
        except NotCompiled:
            return library.conv_epilogue(*arguments)

    return guarded


def choose(
    backend: str,
    input: Tensor,
    weight: Tensor | None = None,
    spec: Spec | None = None,
    *,
    frozen: bool = False,
    residual: bool = False,
    training: bool = False,
) -> Backend:
    """The backend that runs this call. Raises RuntimeError with the reasons of every backend that was considered.

    frozen: the weight does not change and may be packed. residual: the epilogue adds one. training: gradients or batch
    statistics are needed; the tuning table has no measurements of these calls.
    """
    check_name(backend)
    rule = _AUTO.get(input.device.type, ("library",)) if backend == "auto" else (backend,)
    refusals: dict[str, list[str]] = {}
    if backend == "auto" and weight is not None and spec is not None and not training:
        measured = tuning.measured(input, weight, spec, residual, frozen)
        if measured is not None and measured.backend in _BACKENDS:
            refusals[measured.backend] = reasons(measured.backend, input, weight, spec)
            if not refusals[measured.backend]:
                return _BACKENDS[measured.backend]
    for name in rule:
        refusals[name] = reasons(name, input, weight, spec)
        if frozen and backend == "auto" and weight is not None and spec is not None:
            refusals[name] += _BACKENDS[name].pack_reasons(input, weight, spec)
        if not refusals[name]:
            return _BACKENDS[name]
    lines = "".join(f"\n  {name}: {reason}" for name, listed in refusals.items() for reason in listed)
    raise RuntimeError(f"backend={backend!r} cannot run this call:{lines}")
