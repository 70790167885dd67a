"""Who convolves: the choice of a row, or every row's reasons.

backend="auto" takes the row that was measured to be the fastest for this call on this device (tuning.py; `python -m
atrous tune` measures), else the rule, which never makes a model slower than its convolutions by the library:
  CPU   native where it is built, else library; a frozen convolution: native where it packs for Winograd, else library;
  CUDA  library (cuDNN) with our epilogue: Triton's, or native's where Triton does not run.
A row that is named never falls back: it runs, or the error lists its reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from torch import Tensor

from .. import tuning
from ..core.spec import Spec
from . import library, native, triton

_ROWS = {"library": library, "native": native, "triton": triton}
_AUTO = {"cpu": ("native", "library"), "cuda": ("library",)}


def rows() -> dict[str, ModuleType]:
    return dict(_ROWS)


def available(name: str) -> list[str]:
    """Why a row cannot run at all on this machine; empty if it can."""
    return _ROWS[name].available()


def reasons(name: str, input: Tensor, weight: Tensor | None = None, spec: Spec | None = None) -> list[str]:
    """Why a row cannot run this call; empty if it can. weight is None: the epilogue alone."""
    return _ROWS[name].reasons(input, weight, spec)


def named(backend: str) -> None:
    if backend != "auto" and backend not in _ROWS:
        raise ValueError(f"backend: expected one of auto, {', '.join(_ROWS)}, got {backend!r}")


def compiled_or_library(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """run, or while a CUDA graph is captured and its kernel is not compiled yet, the library's convolution."""

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
) -> ModuleType:
    """The row that runs this call. Raises RuntimeError with the reasons of every row that was asked.

    frozen: the weight does not change and may be packed. residual: whether the epilogue adds one. training: gradients
    or batch statistics are wanted, which the table has no measurements of.
    """
    named(backend)
    rule = _AUTO.get(input.device.type, ("library",)) if backend == "auto" else (backend,)
    answers: dict[str, list[str]] = {}
    if backend == "auto" and weight is not None and spec is not None and not training:
        measured = tuning.measured(input, weight, spec, residual, frozen)
        if measured is not None:
            answers[measured.backend] = reasons(measured.backend, input, weight, spec)
            if not answers[measured.backend]:
                return _ROWS[measured.backend]
    for name in rule:
        answers[name] = reasons(name, input, weight, spec)
        if frozen and backend == "auto":
            answers[name] += _ROWS[name].pack_reasons(input, weight, spec)
        if not answers[name]:
            return _ROWS[name]
    lines = "".join(f"\n  {name}: {reason}" for name, found in answers.items() for reason in found)
    raise RuntimeError(f"backend={backend!r} cannot run this call:{lines}")
