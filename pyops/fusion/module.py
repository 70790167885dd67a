"""fuse(): a module with the class, the names and the very state of a model, whose calls run a compiled graph."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..backends import selection
from ..core import dynamo_compat
from ..core.torch_compat import has_global_hook, traced_or_transformed
from .call import Options
from .compare import compare
from .compiler import Compiler, check_then
from .report import Report

COMPILED = ("ScriptModule", "OptimizedModule")


class State:
    """What a fused module has besides the model's own attributes: the model, the options and the compiled entries.

    One entry a mode: Dynamo's caches and limits belong to a code object, and no mode shall use up another's.
    """

    def __init__(self, model: nn.Module, how: dict[str, Any]):
        self.model, self.how = model, how
        options = Options(how["backend"], how["recompute"], how["freeze"], how["then"] is not None)
        self.compiler = Compiler(options, how["then"], Report(how["freeze"]), names=self._names)
        self.entries: dict[tuple, Callable[..., Any]] = {}
        self.modules: list[nn.Module] = []
        self.classes: list[type] = []

    def _names(self) -> dict[int, str]:
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        return {id(tensor): name for name, tensor in named}

    def entry(self, mode: tuple) -> Callable[..., Any]:
        found = self.entries.get(mode)
        if found is None:
            self.modules = list(self.model.modules())
            self.classes = list(map(type, self.modules))
            report, run = self.compiler.report, dynamo_compat.entry(self.model)
            found = self.entries[mode] = dynamo_compat.dynamo(
                run, self.compiler, self.how["dynamic"], report.recompiled.append, report.breaks
            )
        return found

    def run(self, mode: tuple, args: tuple, kwargs: dict) -> Any:
        if dynamo_compat.disabled():
            return self._plain("torch.compile is disabled", args, kwargs)
        if not all(map(operator.is_, map(type, self.modules), self.classes)):
            self._forget()  # Dynamo does not look at the classes of modules again
        before = self.compiler.calls
        try:
            result = self.entry(mode)(*args, **kwargs)
        except dynamo_compat.failures() as error:
            return self._after_failure(mode, error, args, kwargs)
        if self.compiler.calls == before:
            self.note_plain("torch.compile ran no graph of it: it was skipped, or is past its recompile limit")
        return result

    def _plain(self, reason: str, args: tuple, kwargs: dict) -> Any:
        self.note_plain(reason)
        return self.model(*args, **kwargs)

    def _after_failure(self, mode: tuple, error: Exception, args: tuple, kwargs: dict) -> Any:
        """What Dynamo cannot trace runs as it is: it raises torch's own error, or handles it."""
        result = self.model(*args, **kwargs)
        self.entries[mode] = self.model
        self.note_plain(f"torch.compile failed: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return result

    def _forget(self) -> None:
        self.entries.clear()
        self.modules = list(self.model.modules())
        self.classes = list(map(type, self.modules))

    def note_plain(self, reason: str) -> None:
        counted = self.compiler.report.plain_calls
        if reason not in counted:
            warnings.warn(f"atrous.fuse: the plain model ran: {reason}", stacklevel=4)
        counted[reason] = counted.get(reason, 0) + 1


class Fused:
    """The part of a fused module's class that stands before the model's own class."""

    __slots__ = ()
    _atrous: State
    __jit_unused_properties__ = ["fusion_report"]

    def __call__(self, *args, **kwargs):
        state = self._atrous
        if (
            traced_or_transformed(args) or has_global_hook()
        ):  # in torch.func, a tracer or a compiler: see docs/differences.md
            return state.model(*args, **kwargs)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), dynamo_compat.autocasts()
        return state.run((self.training, *modes), args, kwargs)  # type: ignore[attr-defined]

    @property
    def fusion_report(self) -> Report:
        """Every site: fused, or the reason why not. Filled as the model is called."""
        return self._atrous.compiler.report

    def __reduce_ex__(self, protocol):
        return _again, (self._atrous.model, self._atrous.how)

    def __deepcopy__(self, memo):
        return _again(copy.deepcopy(self._atrous.model, memo), self._atrous.how)

    def __copy__(self):
        return _again(self._atrous.model, self._atrous.how)

    def _replicate_for_data_parallel(self):
        return self._atrous.model._replicate_for_data_parallel()


class Frozen(Fused):
    """A fused module that owns its tensors: BatchNorms are folded into convolutions, and again after a change."""

    __slots__ = ()

    def train(self, mode: bool = True):
        if mode:
            raise RuntimeError(
                "train: this model was frozen by atrous.fuse(freeze=True), its BatchNorms are folded into its "
                "convolutions; train the original model"
            )
        return super().train(False)  # type: ignore[misc]

    def refold(self) -> None:
        """Folds again at the next call: needed after a change that torch does not count, through `.data`."""
        self._atrous.compiler.store.clear()

    def _apply(self, *args, **kwargs):
        self.refold()
        return super()._apply(*args, **kwargs)  # type: ignore[misc]


def fuse(
    model: nn.Module,
    example_inputs=None,
    *,
    backend: str = "auto",
    freeze: bool = False,
    recompute: bool = True,
    dynamic: bool | None = None,
    then: str | None = None,
) -> nn.Module:
    """Returns the model as a module whose every act(bn(conv(x)) + r) is one call."""
    model = _check(model)
    selection.check_name(backend)
    for name, flag in (("freeze", freeze), ("recompute", recompute)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: expected True or False, got {flag!r}")
    if dynamic not in (None, True, False):
        raise TypeError(f"dynamic: expected None, True or False, got {dynamic!r}")
    check_then(then)
    if freeze:
        model = copy.deepcopy(model).eval().requires_grad_(False)
    how = {"backend": backend, "freeze": freeze, "recompute": recompute, "dynamic": dynamic, "then": then}
    fused = _again(model, how)
    if example_inputs is not None:
        compare(model, fused, example_inputs)
    return fused


def is_fused(model: nn.Module) -> bool:
    return isinstance(model, Fused)


def is_frozen(model: nn.Module) -> bool:
    return isinstance(model, Frozen)


@contextlib.contextmanager
def observed(model: nn.Module, observer: Callable[[Callable[..., Any], tuple], Any]) -> Iterator[None]:
    """Inside, a fused model calls observer(graph, arguments) in place of graph(*arguments)."""
    assert isinstance(model, Fused)
    compiler = model._atrous.compiler
    compiler.observer = observer
    try:
        yield
    finally:
        compiler.observer = None


def _again(model: nn.Module, how: dict[str, Any]) -> nn.Module:
    """One state, two classes: the object's attributes are the model's own."""
    fused = object.__new__(_class(type(model), how["freeze"]))
    fused.__dict__ = model.__dict__
    object.__setattr__(fused, "_atrous", State(model, how))
    return fused


@functools.cache
def _class(kind: type[nn.Module], frozen: bool) -> type[nn.Module]:
    bases = (Frozen if frozen else Fused, kind)
    attributes = {"__slots__": ("_atrous",), "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(f"Fused{kind.__name__}", bases, attributes)


def _check(model: object) -> nn.Module:
    """The model itself, if it is a fused one: fuse() again gives it other options."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, Frozen):
        raise ValueError("model: expected a model that is not frozen: freeze=True cannot be undone or repeated")
    if isinstance(model, Fused):
        return model._atrous.model
    for path, module in model.named_modules():
        name = f"model.{path}" if path else "model"
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in COMPILED]
        if kinds:
            raise TypeError(f"{name}: expected a module as it was written, got a {kinds[-1]}: fuse first, then compile")
        if any(map(is_lazy, module.parameters(recurse=False))):
            raise ValueError(
                f"{name}: expected initialized parameters, got a lazy {type(module).__name__}: run it once"
            )
    return model
