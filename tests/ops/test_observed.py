"""Who looks at operators: then a kernel is called by its operator, else without the dispatcher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from atrous.ops import triton_impl


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **kwargs or {})


class Subclass(Tensor): ...


class Backward(torch.autograd.Function):
    """Asks in its backward, where a batch of gradients has a type and keys of its own."""

    @staticmethod
    def forward(ctx, x, said):
        ctx.said = said
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        ctx.said.append(triton_impl.observed(grad))
        return grad * 2, None


def ask(said):
    def function(x):
        said.append(triton_impl.observed(x, None, 1.0, "relu"))
        return x * 1

    return function


def batched_gradients(said):
    x = torch.ones(3, requires_grad=True)
    torch.autograd.grad(Backward.apply(x, said), x, torch.eye(3), is_grads_batched=True)


def in_a_mode(said):
    with Mode():
        ask(said)(torch.ones(2))


def profiled(said):
    with torch.profiler.profile():
        ask(said)(torch.ones(2))


OBSERVERS = {
    "dispatch mode": in_a_mode,
    "profiler": profiled,
    "batched gradients": batched_gradients,
    "make_fx": lambda said: make_fx(ask(said))(torch.ones(2)),
    "make_fx, before dispatch": lambda said: make_fx(ask(said), pre_dispatch=True)(torch.ones(2)),
    "jit.trace": lambda said: torch.jit.trace(ask(said), torch.ones(2), check_trace=False),
    "grad": lambda said: torch.func.grad(lambda x: ask(said)(x).sum())(torch.ones(2)),
    "vmap": lambda said: torch.func.vmap(ask(said))(torch.ones(2, 2)),
    "jvp": lambda said: torch.func.jvp(ask(said), (torch.ones(2),), (torch.ones(2),)),
    "subclass": lambda said: ask(said)(torch.ones(2).as_subclass(Subclass)),
    "subclass behind": lambda said: said.append(
        triton_impl.observed(torch.ones(2), torch.ones(2).as_subclass(Subclass))
    ),
}


@pytest.mark.parametrize("name", OBSERVERS)
def test_observed(name):
    said = []
    OBSERVERS[name](said)
    assert said and all(said)


def test_not_observed():
    """Plain tensors and parameters, with gradients, without, in inference mode, and in a backward."""
    said, x = [], torch.nn.Parameter(torch.ones(2))
    ask(said)(x)
    Backward.apply(x, said).sum().backward()
    with torch.no_grad(), torch.autocast("cpu"):
        ask(said)(x)
    with torch.inference_mode():
        ask(said)(torch.ones(2))
    assert len(said) == 4 and not any(said)


@pytest.mark.parametrize("row", ["triton", "training"])
def test_the_operator_is_called_where_anybody_observes(row, monkeypatch):
    from atrous.backends import training, triton

    called, x = [], torch.ones(2)
    monkeypatch.setattr(triton_impl, "triton_runs", lambda device: True)
    monkeypatch.setattr(triton_impl, "capturing", lambda x: False)
    monkeypatch.setattr(triton_impl, "pointwise", lambda name: lambda *_: called.append("kernel"))
    monkeypatch.setattr(torch.ops.atrous_triton, "_statistics", lambda *_: called.append("operator"))
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda x: True))
    primitive = {"triton": triton, "training": training}[row].primitive("_statistics", x)
    primitive(x)
    with Mode():
        primitive(x)
    assert called == ["kernel", "operator"]
