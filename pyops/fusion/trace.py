"""Traces the forward of one module to an fx graph with its children as leaves, or says why it cannot be traced."""

from __future__ import annotations

import copy
import inspect
import operator
import random
import sys
from collections import OrderedDict, deque

import torch
from torch import fx, nn

from ..core.torch_compat import hook_dicts
from .aliasing import WRITING_OPERATORS
from .shared_copy import Generated, shared_copy

CONTAINERS = (dict, list, set, deque, OrderedDict)
HOOKS = hook_dicts(nn.Module()).keys()


class Untraceable(Exception):
    """A forward has no equivalent graph; the message is the reason, in one line."""


class Trace:
    """graph: the forward in one mode. names: its arguments. defaults: the arguments with a default, and its value.

    reads: the attributes of the module that the forward read; it must be traced again when they change.
    """

    def __init__(self, owner: nn.Module, training: bool):
        forward = type(owner).forward
        if (
            not isinstance(vars(owner).get("forward"), Generated | None)
            or type(owner).__call__ is not nn.Module.__call__
        ):
            raise Untraceable("its forward was replaced on the instance, or its class replaces __call__")
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise Untraceable("its forward takes *args or **kwargs")
        self.names = tuple(p.name for p in parameters)
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        required = [p for p in parameters if p.default is p.empty]
        self.reads: set[str] = set()
        scratch = _scratch(owner, training)
        # A default must stay a constant: for a proxy "x is None" would be False, whatever is passed later.
        object.__setattr__(scratch, "__class__", _with_required_arguments(type(owner), required, self.reads))
        with _unchanged(scratch):
            self.graph = _Tracer().trace(scratch)


def trace(owner: nn.Module, training: bool) -> Trace:
    try:
        with torch.enable_grad():
            return Trace(owner, training)
    except Untraceable:
        raise
    except Exception as error:  # a forward may raise anything on a proxy
        text = str(error).strip().split("\n")[0]
        raise Untraceable(f"torch.fx cannot trace its forward: {text or type(error).__name__}") from error


class _Proxy(fx.Proxy):
    """A proxy that refuses isinstance(), whose answer would select a branch and be wrong for a tensor."""

    @property
    def __class__(self):  # type: ignore[override]
        caller = sys._getframe(1)
        name = caller.f_globals.get("__name__", "")
        if name.split(".")[0] != "torch" or caller.f_code.co_name == "is_tensor":
            raise Untraceable("its forward asks for the type of a value")
        return _Proxy


def _in_place(function):
    return lambda *args: args[0].tracer.create_proxy("call_function", function, args, {})


for _name in WRITING_OPERATORS:  # fx would record "x += y" as x + y and leave x unchanged
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Unknown:
    """The training flag of a child, which may differ from the owner's at any call."""

    def __bool__(self):
        raise Untraceable("its forward asks for the training flag of a submodule")


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self):
        super().__init__()
        self.context = _context()

    def is_leaf_module(self, m, module_qualified_name):
        return True

    def proxy(self, node):
        return _Proxy(node, self)

    def create_node(self, *args, **kwargs):
        if _context() != self.context:  # fx does not record "with torch.no_grad():" or autocast
            raise Untraceable("its forward switches gradients or autocast")
        return super().create_node(*args, **kwargs)


def _context() -> tuple:
    devices = ("cpu", "cuda")
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    return torch.is_grad_enabled(), *autocast


def _scratch(owner: nn.Module, training: bool) -> nn.Module:
    """Returns a copy to trace on, with its own containers, so that a forward's side effects stay in it."""
    scratch = shared_copy(owner)
    for module in scratch.modules():
        vars(module).update(_snapshot(module), training=training if module is scratch else _Unknown())
    return scratch


def _with_required_arguments(kind, required: list[inspect.Parameter], reads: set[str]) -> type:
    """Returns a subclass whose forward takes only the required arguments and which records attribute reads."""
    passed = [f"{p.name}={p.name}" if p.kind is p.KEYWORD_ONLY else p.name for p in required]
    source = f"lambda {', '.join(['self', *(p.name for p in required)])}: _forward({', '.join(['self', *passed])})"

    def __getattribute__(self, name):
        reads.add(name)
        return kind.__getattribute__(self, name)

    body = {"forward": eval(source, {"_forward": kind.forward}), "__getattribute__": __getattribute__}
    return type(kind)(kind.__name__, (kind,), body)


class _unchanged:
    """Refuses a forward with side effects: tracing would run them once and the graph never again."""

    def __init__(self, scratch: nn.Module):
        self.modules = list(scratch.modules())

    def __enter__(self):
        self.before = [_snapshot(module) for module in self.modules]
        self.random = random.getstate(), torch.get_rng_state()

    def __exit__(self, kind, error, traceback):
        python, own = self.random
        drew = random.getstate() != python or not torch.equal(torch.get_rng_state(), own)
        random.setstate(python)
        torch.set_rng_state(own)
        if error is not None:
            return
        if drew:
            raise Untraceable("its forward draws random numbers that torch.fx does not record")
        for module, before in zip(self.modules, self.before):
            for name in before.keys() | vars(module).keys():
                if not _same(before.get(name, before), vars(module).get(name, before)):
                    raise Untraceable(f"its forward changes {type(module).__name__}.{name}")


def _snapshot(module: nn.Module) -> dict:
    return {
        name: copy.copy(v) if type(v) in CONTAINERS and name not in HOOKS else v for name, v in vars(module).items()
    }


def _same(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(a[key] is b[key] for key in a)
    if isinstance(a, set):
        return a == b
    if isinstance(a, (list, deque)):
        return len(a) == len(b) and all(x is y for x, y in zip(a, b))
    return a is b
