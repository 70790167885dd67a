"""Faults for the tests of fuse(): each function takes a model and gives one of its state that is wrong in one way."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from unittest import mock

import numpy
import torch
from torch import nn
from torch.utils._pytree import tree_map


def calling(model: nn.Module, call: Callable, **members: object) -> nn.Module:
    """An object with the model's class and state whose call is `call(*args, **kwargs)`."""
    cls = type(type(model).__name__, (type(model),), {"__call__": lambda self, *a, **k: call(*a, **k), **members})
    wrong = object.__new__(cls)
    wrong.__dict__ = model.__dict__
    return wrong


def over_tensors(function: Callable) -> Callable:
    """A function of nested values that applies `function` to the tensors of a floating dtype in them."""
    return lambda value: tree_map(
        lambda v: function(v) if isinstance(v, torch.Tensor) and v.is_floating_point() else v, value
    )


def scales(model, *args, **options):
    """Values are off by 1e-6 of themselves."""
    wrong = over_tensors(lambda y: y * (1 + 1e-6))
    return calling(model, lambda *a, **k: wrong(model(*a, **k)))


def doubles(model, *args, **options):
    """Values are twice what they should be, which costs a convolution more."""

    def call(*a, **k):
        return model(*a, **k) + model(*a, **k)

    return calling(model, call)


def doubles_forward(model, *args, **options):
    """The same for tracers, which run the forward and not the call."""
    return calling(model, lambda x: model(x) * 2, forward=lambda self, x: type(model).forward(self, x) * 2)


def copies(model, *args, **options):
    """Each tensor of a result is a new one."""
    clone = over_tensors(lambda y: y.clone())
    return calling(model, lambda *a, **k: clone(model(*a, **k)))


def separates_outputs(model, *args, **options):
    """Each tensor of a result is of a call of its own, so that none of them depends on another."""

    def call(*a, **k):
        y = model(*a, **k)
        if isinstance(y, torch.Tensor):
            return model(*a, **k)
        return type(y)(model(*a, **k)[i] for i in range(len(y)))

    return calling(model, call)


def loses_input_gradients(model, *args, **options):
    detach = over_tensors(lambda x: x.detach())
    return calling(model, lambda *a, **k: model(*detach(a), **detach(k)))


def loses_statistics(model, *args, **options):
    """Buffers are after a call what they were before."""

    def call(*a, **k):
        before = [buffer.clone() for buffer in model.buffers()]
        y = model(*a, **k)
        for buffer, value in zip(model.buffers(), before):
            buffer.data.copy_(value)
        return y

    return calling(model, call)


def stale(model, *args, **options):
    """Calls compute with the model as it was when it was fused; only its mode follows."""
    old = copy.deepcopy(model)

    def call(*a, **k):
        for mine, theirs in zip(old.modules(), model.modules()):
            mine.training = theirs.training
        return old(*a, **k)

    return calling(model, call)


def traced(model, *args, **options):
    """The operators of the first call are replayed in every later one."""
    programs = []

    def call(*a):
        if not programs:
            programs.append(torch.jit.trace(model, a, check_trace=False, strict=False))
        return programs[0](*a)

    return calling(model, call)


def draws_alike(model, *args, **options):
    """Every call draws the same random numbers, from a generator `draws` of the model's own too."""
    first = copy.copy(state_of(getattr(model, "draws", None)))

    def call(*a, **k):
        torch.manual_seed(0), random.seed(0), numpy.random.seed(0)
        set_state(getattr(model, "draws", None), first)
        return model(*a, **k)

    return calling(model, call)


def state_of(draws):
    if isinstance(draws, numpy.random.Generator):
        return draws.bit_generator.state
    return draws.getstate() if isinstance(draws, random.Random) else draws and draws.get_state()


def set_state(draws, state):
    if isinstance(draws, numpy.random.Generator):
        draws.bit_generator.state = state
    elif draws is not None:
        (draws.setstate if isinstance(draws, random.Random) else draws.set_state)(state)


def stops_the_clock(model, *args, **options):
    def call(*a, **k):
        with mock.patch("time.perf_counter", lambda: 1.0), mock.patch("time.time_ns", lambda: 1):
            return model(*a, **k)

    return calling(model, call)


def as_list(model, *args, **options):
    """The result's tensors come back as a list, whatever container they were in."""
    from outcomes import parts

    return calling(model, lambda *a, **k: [v for _, v in parts(model(*a, **k)) if isinstance(v, torch.Tensor)])


def context(*managers: Callable) -> Callable:
    """A fault that calls the model inside these context managers."""

    def wrong(model, *args, **options):
        def call(*a, **k):
            with managers[0](), managers[-1]():
                return model(*a, **k)

        return calling(model, call)

    wrong.__name__ = "context_" + "_".join(getattr(manager, "__name__", "manager") for manager in managers)
    return wrong


ignores_autocast = context(lambda: torch.autocast("cpu", enabled=False))
always_gradients = context(torch.enable_grad)
never_gradients = context(torch.no_grad)


class Bent(torch.autograd.Function):
    """x, with the gradient of x at first order and another at second order."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 + 0.5 * (x - x.detach()))


def first_order_only(model, *args, **options):
    """Gradients are right, gradients of gradients are not."""
    return calling(model, lambda x: model(Bent.apply(x)))


def replaces(model, *args, **options):
    """A call from another thread, before this one has ended, replaces its arguments."""
    latest = []

    def call(*a):
        latest[:] = [a]
        time.sleep(0.05)
        return model(*latest[0])

    return calling(model, call)


def one_argument(model, *args, **options):
    """Further arguments are ignored."""

    def call(*a, **k):
        first = a[:1] or (k.pop("x"),)
        return model(*first, **{name: value for name, value in k.items() if name == "options"})

    return calling(model, call)


def keeps_references(model, *args, **options):
    """A forward stores its features in a copy of the model."""
    import copy

    other = copy.deepcopy(model)
    vars(model).update({"last": [], "stored_by": other})
    return calling(model, lambda *a, **k: (setattr(model.conv1, "seen", ()), other(*a, **k))[1])


def ignores_hooks(model, *args, **options):
    """Hooks of every module, global ones and those on gradients do not run."""
    dicts = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

    def call(*a, **k):
        kept = [(m, name, dict(getattr(m, name))) for m in model.modules() for name in dicts]
        hooks = nn.modules.module._global_forward_hooks
        kept_global = dict(hooks)
        tensor_hooks = [(p, p._backward_hooks) for p in model.parameters()]
        for m, name, _ in kept:
            getattr(m, name).clear()
        for p, _ in tensor_hooks:
            p._backward_hooks = None
        hooks.clear()
        try:
            return model(*a, **k)
        finally:
            for m, name, values in kept:
                getattr(m, name).update(values)
            hooks.update(kept_global)

    return calling(model, call)


def old_parameters(model, *args, **options):
    """Calls compute with the values that the parameters had when the model was fused."""
    old = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def call(*a, **k):
        now = {name: parameter.data for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.data = old.get(name, parameter.data)
        try:
            return model(*a, **k)
        finally:
            for name, parameter in model.named_parameters():
                parameter.data = now[name]

    return calling(model, call)


def forgets_its_class(model, *args, **options):
    """A module of another class around the model."""
    return nn.Sequential(model)


def owns_its_state(model, *args, **options):
    return copy.deepcopy(model)


def itself(model, *args, **options):
    return model


def not_its_own_tensors(model, *args, **options):
    """A frozen copy whose tensors are the model's."""
    wrong = copy.deepcopy(model).eval().requires_grad_(False)
    for mine, theirs in zip(wrong.parameters(), model.parameters()):
        mine.data = theirs.data
    return wrong


def folds_once(model, *args, **options):
    """A frozen copy that computes with what it held at its first call."""
    wrong = copy.deepcopy(model).eval().requires_grad_(False)
    first = []

    def call(*a, **k):
        first[:] = first or [copy.deepcopy(wrong)]
        return first[0](*a, **k)

    return calling(wrong, call)


def first_instance():
    """A fault whose copies all compute with the weights of the first of them."""
    first = []

    def wrong(model, *args, **options):
        first[:] = first or [model]
        fits = [p.shape for p in model.parameters()] == [p.shape for p in first[0].parameters()]
        return calling(model, first[0]) if fits else model

    return wrong


def swallows_errors(model, *args, **options):
    """Errors, prints, warnings and logs do not come out."""
    import contextlib
    import io
    import logging
    import warnings

    def call(*a, **k):
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable()
            try:
                return model(*a, **k)
            except Exception:
                return None
            finally:
                logging.disable(logging.NOTSET)

    return calling(model, call)


def forgets_tangents(model, *args, **options):
    """Forward-mode derivatives are those of a constant times a half."""
    import torch.autograd.forward_ad as fwAD

    def call(x):
        x, tangent = fwAD.unpack_dual(x)
        y = model(x)
        return y if tangent is None else fwAD.make_dual(y, tangent[:, : y.shape[1]] * 0.5)

    return calling(model, call)


def compiles_each_size(model, *args, **options):
    """One graph for each size."""
    compiled = torch.compile(model, dynamic=False, backend="eager")

    def call(*a, **k):
        with torch._dynamo.config.patch(recompile_limit=100):
            return compiled(*a, **k)

    return calling(model, call)


def ignores_checkpoints(model, *args, **options):
    """torch.utils.checkpoint runs its function and keeps everything."""

    def call(*a, **k):
        run = lambda function, *args, **options: function(*args)  # noqa: E731
        with mock.patch("torch.utils.checkpoint.checkpoint", run):
            return model(*a, **k)

    return calling(model, call)


def keeps_more(model, *args, **options):
    """The backward keeps twice the plain model's bytes."""

    def call(x):
        y = model(x)
        return y * y.detach().clone().repeat(9, 1, 1, 1)[: y.shape[0]] if y.requires_grad else y

    return calling(model, call)


def frees_nothing(model, *args, **options):
    """The tensors that the forward saved are there until the whole backward has ended."""

    def call(x):
        y = model(x)
        leaf = y.detach().requires_grad_()
        leaf.register_hook(lambda grad: y.backward(grad, retain_graph=True))
        return leaf

    return calling(model, call)
