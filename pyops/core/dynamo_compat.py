"""Private names of Dynamo, the front end of torch.compile, each behind a public one, as in torch_compat.py.

Tried with torch 2.11.0, 2.13.0 and 2.14.1. Only functions import torch._dynamo: the import takes a second.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

# A write into an object's __dict__ keeps the dictionary's version: https://github.com/python/cpython/issues/125608
_TAGS_ARE_WRONG = sys.version_info[:3] == (3, 13, 0)
# Dynamo by default ignores hooks that are added after the first call, checks each attribute of each module, and counts
# its limit for all instances of a class together where a graph breaks inside their forward. name -> default, ours
_SETTINGS: dict[str, tuple[Any, Any]] = {
    "skip_nnmodule_hook_guards": (True, False),
    "use_recursive_dict_tags_for_guards": (True, False) if _TAGS_ARE_WRONG else (False, True),
    "recompile_limit": (8, 256),
}
_names = itertools.count()


def entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls this one, with a code object of its own: Dynamo's caches and limits belong to it."""

    def run(*args, **kwargs):
        return function(*args, **kwargs)

    run.__code__ = run.__code__.replace(co_name=f"fused_{next(_names)}")
    return run


def dynamo(
    function: Callable[..., Any],
    backend: Callable[..., Any],
    dynamic: bool | None,
    failed: Callable[[str], None],
    breaks: dict[str, int],
) -> Callable[..., Any]:
    """The function, compiled by a backend under settings of our own.

    failed: it is told why a graph did not fit. breaks: reason -> count of graph breaks.
    """
    import torch._dynamo

    _trace_jit_isinstance()

    def guard_failed(failure: Any) -> None:
        failed(failure.reason)

    known = weakref.ref(backend)  # Dynamo remembers each backend that it was given until it is reset

    def compile_graph(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return known()(gm, inputs)  # type: ignore[misc]

    compile_graph.rewrites = True  # type: ignore[attr-defined]  # see fusion/nested.py
    context: Any = torch._dynamo.optimize(backend=compile_graph, dynamic=dynamic, guard_fail_fn=guard_failed)
    _patch(context.callback, breaks)
    return context(function)


@functools.cache
def _trace_jit_isinstance() -> None:
    """Lets Dynamo trace torch.jit.isinstance with plain types, as MONAI calls it, where it would break the graph."""

    def jit_isinstance(obj, target_type):
        types = target_type if type(target_type) is tuple else (target_type,)
        for kind in types:
            if not isinstance(kind, type) or hasattr(kind, "__origin__") or kind in (list, tuple, dict):
                return torch._jit_internal._isinstance(obj, target_type)
        return isinstance(obj, types)

    from torch._dynamo.trace_rules import get_torch_obj_rule_map

    get_torch_obj_rule_map().pop(torch.jit.isinstance, None)  # says that it is not traced
    with contextlib.suppress(ValueError):  # another library has told Dynamo how to trace it
        torch.compiler.substitute_in_graph(torch.jit.isinstance)(jit_isinstance)


def _patch(callback: Any, breaks: dict[str, int]) -> None:
    """Holds the settings while Dynamo compiles a frame for us; where that cannot be done, they hold for everybody."""
    kind = type(callback)

    class UnderSettings(kind):  # type: ignore[misc, valid-type]
        def __call__(self, *args, **kwargs):
            # the counters and, in torch 2.11, the settings are those of all threads
            with no_compilation(), _counted(breaks), torch._dynamo.config.patch(_settings()):
                return kind.__call__(self, *args, **kwargs)

    try:
        callback.__class__ = UnderSettings  # the object stays: the C code behind it follows a chain of attributes
    except TypeError:
        for name, setting in _settings().items():
            setattr(torch._dynamo.config, name, setting)


@contextlib.contextmanager
def _counted(breaks: dict[str, int]) -> Iterator[None]:
    """Adds the graph breaks inside it to `breaks`."""
    from torch._dynamo.utils import counters

    before = dict(counters["graph_break"])
    try:
        yield
    finally:
        for reason, count in counters["graph_break"].items():
            if count > before.get(reason, 0):
                breaks[reason] = breaks.get(reason, 0) + count - before.get(reason, 0)


def _settings() -> dict[str, Any]:
    """Those of our settings that this torch knows and that the user has not set."""
    config, settings = torch._dynamo.config, {}
    ddp = torch.distributed.is_available() and nn.parallel.DistributedDataParallel._get_active_ddp_module()
    if ddp and ddp.bucket_bytes_cap < torch.distributed._DEFAULT_FIRST_BUCKET_BYTES:
        settings["optimize_ddp"] = False  # Dynamo splits the graph at buckets, and asserts that none is so small
    return settings | {
        name: ours for name, (default, ours) in _SETTINGS.items() if getattr(config, name, None) == default
    }


def disabled() -> bool:
    """True if torch.compile is switched off: a call would mark its code as never to be compiled."""
    import torch._dynamo

    return torch._dynamo.config.disable


def failures() -> tuple[type[Exception], ...]:
    """The errors by which Dynamo reports that it could not trace a call."""
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)


def met_a_trace(error: RuntimeError) -> bool:
    """True if a compiled function was called while fx traced, and so did not run. fx's flag is one for all threads."""
    return "using FX to symbolically trace a dynamo-optimized function" in str(error)


def no_compilation() -> contextlib.AbstractContextManager:
    """A context in which no other thread compiles."""
    from torch._dynamo import convert_frame

    return convert_frame.compile_lock


def output_graph() -> Any:
    """The graph that Dynamo is tracing, with its compiler (compiler_fn)."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().output


def draws_from_own_random() -> bool:
    """True if the frame that Dynamo compiles draws from a random.Random: Dynamo would make its values constants."""
    from torch._dynamo.variables.misc import RandomVariable

    effects = output_graph().side_effects.id_to_variable
    return any(isinstance(variable, RandomVariable) for variable in effects.values())


def skip_frame(reason: str) -> Exception:
    """Raised in a backend: Dynamo runs this frame as it is, and compiles those that it calls."""
    from torch._dynamo.exc import SkipFrame

    return SkipFrame(reason)
