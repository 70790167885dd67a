"""Observed calls go through the operator, all others launch the kernel without the dispatcher."""

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
    """Calls observed() in its backward, where a batch of gradients has its own type and dispatch keys."""

    @staticmethod
    def forward(ctx, x, answers):
        ctx.answers = answers
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        ctx.answers.append(triton_impl.observed(grad))
        return grad * 2, None


def ask(answers):
    def function(x):
        answers.append(triton_impl.observed(x, None, 1.0, "relu"))
        return x * 1

    return function


def batched_gradients(answers):
    x = torch.ones(3, requires_grad=True)
    torch.autograd.grad(Backward.apply(x, answers), x, torch.eye(3), is_grads_batched=True)


def in_a_mode(answers):
    with Mode():
        ask(answers)(torch.ones(2))


def profiled(answers):
    with torch.profiler.profile():
        ask(answers)(torch.ones(2))


OBSERVERS = {
    "dispatch mode": in_a_mode,
    "profiler": profiled,
    "batched gradients": batched_gradients,
    "make_fx": lambda answers: make_fx(ask(answers))(torch.ones(2)),
    "make_fx, before dispatch": lambda answers: make_fx(ask(answers), pre_dispatch=True)(torch.ones(2)),
    "jit.trace": lambda answers: torch.jit.trace(ask(answers), torch.ones(2), check_trace=False),
    "grad": lambda answers: torch.func.grad(lambda x: ask(answers)(x).sum())(torch.ones(2)),
    "vmap": lambda answers: torch.func.vmap(ask(answers))(torch.ones(2, 2)),
    "jvp": lambda answers: torch.func.jvp(ask(answers), (torch.ones(2),), (torch.ones(2),)),
    "subclass": lambda answers: ask(answers)(torch.ones(2).as_subclass(Subclass)),
    "subclass behind": lambda answers: answers.append(
        triton_impl.observed(torch.ones(2), torch.ones(2).as_subclass(Subclass))
    ),
}


@pytest.mark.parametrize("name", OBSERVERS)
def test_observed(name):
    answers = []
    OBSERVERS[name](answers)
    assert answers and all(answers)


def test_not_observed():
    """Plain tensors and parameters: with and without gradients, in inference mode and in a backward."""
    answers, x = [], torch.nn.Parameter(torch.ones(2))
    ask(answers)(x)
    Backward.apply(x, answers).sum().backward()
    with torch.no_grad(), torch.autocast("cpu"):
        ask(answers)(x)
    with torch.inference_mode():
        ask(answers)(torch.ones(2))
    assert len(answers) == 4 and not any(answers)


@pytest.mark.parametrize("module", ["triton", "aten"])
def test_the_operator_is_called_if_the_call_is_observed(module, monkeypatch):
    from atrous.backends import aten, triton

    called, x = [], torch.ones(2)
    monkeypatch.setattr(triton_impl, "triton_runs", lambda device: True)
    monkeypatch.setattr(triton_impl, "capturing", lambda x: False)
    monkeypatch.setattr(triton_impl, "launchers", lambda: {"_statistics": lambda z: called.append("kernel")})
    monkeypatch.setattr(torch.ops.atrous_triton, "_statistics", lambda *_: called.append("operator"))
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda x: True))
    primitive = {"triton": triton, "aten": aten}[module].primitive("_statistics", x)
    primitive(x)
    with Mode():
        primitive(x)
    assert called == ["kernel", "operator"]
