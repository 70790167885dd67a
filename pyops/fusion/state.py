"""The options, the compiled entries and the report of a fused module."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from ..core import dynamo_compat
from ..core.errors import summary
from . import nested, sync_norm
from .compiler import Compiler
from .report import Report
from .sites.call import Options


class State:
    """The state of one fused module.

    entries: one a mode: Dynamo's caches and limits belong to a code object, and no mode shall use up another's.
    """

    def __init__(self, model: nn.Module, how: dict[str, Any]):
        sync_norm.install(model, nested.rewrites)
        self.model, self.how, self.number = model, how, nested.register(self)
        options = Options(how["backend"], how["recompute"], how["freeze"], how["then"] is not None)
        self.compiler = Compiler(options, how["then"], Report(how["freeze"]), names=self._names)
        self.entries: dict[tuple, Callable[..., Any]] = {}
        self.modules: list[nn.Module] = []
        self.classes: list[type] = []
        self.forward: Callable[..., Any] = type(model).forward

    def _names(self) -> dict[int, str]:
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        return {id(tensor): name for name, tensor in named}

    def entry(self, mode: tuple) -> Callable[..., Any]:
        entry = self.entries.get(mode)
        if entry is None:
            self._watch()
            if inspect.isgeneratorfunction(self.model.forward):  # Dynamo would compute all of its values at once
                self.entries[mode] = self.model
                return self.model
            report, run = self.compiler.report, dynamo_compat.entry(self.model)
            entry = self.entries[mode] = dynamo_compat.dynamo(
                run, self.compiler, self.how["dynamic"], report.recompiled.append, report.breaks
            )
        return entry

    def run(self, mode: tuple, args: tuple, kwargs: dict) -> Any:
        if dynamo_compat.disabled():
            return self.plain("torch.compile is disabled", args, kwargs)
        if kwargs and self._given_twice(args, kwargs):
            return self.plain("an argument was given twice, which Dynamo does not see", args, kwargs)
        if list(map(type, self.modules)) != self.classes or type(self.model).forward is not self.forward:
            self.entries.clear()  # Dynamo does not look at the classes of modules again
            self._watch()
        thread = threading.get_ident()
        before = self.compiler.calls.get(thread)
        try:
            result = self._call(mode, args, kwargs)
        except dynamo_compat.failures() as error:
            return self._after_failure(mode, error, args, kwargs)
        if self.compiler.calls.get(thread) == before:
            self.note_plain("torch.compile ran no graph: nothing to compile, skipped, or past its recompile limit")
        return result

    def _call(self, mode: tuple, args: tuple, kwargs: dict) -> Any:
        """Runs the compiled entry, again if it met a graph that another thread traces for a compilation."""
        try:
            return self.entry(mode)(*args, **kwargs)
        except RuntimeError as error:
            if not dynamo_compat.met_a_trace(error):
                raise
        with dynamo_compat.no_compilation():
            return self.entry(mode)(*args, **kwargs)

    def _given_twice(self, args: tuple, kwargs: dict) -> bool:
        forward = self.model.forward
        code = getattr(forward, "__code__", None)
        names = () if code is None else code.co_varnames[inspect.ismethod(forward) : code.co_argcount]
        return not kwargs.keys().isdisjoint(names[: len(args)])

    def plain(self, reason: str, args: tuple, kwargs: dict, warn: bool = True) -> Any:
        self.note_plain(reason, warn)
        return self.model(*args, **kwargs)

    def _after_failure(self, mode: tuple, error: Exception, args: tuple, kwargs: dict) -> Any:
        """Runs the model as it is: it raises torch's own error, or handles it."""
        result = self.model(*args, **kwargs)
        self.entries[mode] = self.model
        self.note_plain(f"torch.compile failed: {summary(error)}")
        return result

    def _watch(self) -> None:
        self.modules = list(self.model.modules())
        self.classes = list(map(type, self.modules))
        self.forward = type(self.model).forward

    def note_plain(self, reason: str, warn: bool = True) -> None:
        counted = self.compiler.report.plain_calls
        if warn and reason not in counted:
            warnings.warn(f"atrous.fuse: the plain model ran: {reason}", stacklevel=4)
        counted[reason] = counted.get(reason, 0) + 1
