"""Derivatives of every kind through a fused model equal the plain model's: none is refused, none is silently 0."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from faults import first_order_only, forgets_tangents, scales
from outcomes import agree, equal_models
from pairs import BOTH, image
from pairs import Pair as Kinked
from torch import nn
from variants import SHARED, catches, layers

import atrous


class Pair(Kinked):
    """With a smooth function between, so that second derivatives are not 0."""

    def forward(self, x):
        return torch.tanh(self.second(torch.sin(self.first(x)), x))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    assert all(t.abs().max() > 0 for t in (expected if isinstance(expected, tuple | list) else [expected]))


def parameters(model):
    return [p for p in model.parameters() if p.requires_grad]


def double_backward(model, x, result=lambda y: y):
    """Gradients of a norm of the gradients of all parameters. result: takes a tensor out of what the model returns."""
    x = x.clone().requires_grad_()
    wanted = [x, *parameters(model)]
    first = torch.autograd.grad(result(model(x)).pow(2).sum(), wanted, create_graph=True)
    again = torch.autograd.grad(sum((g * g).sum() for g in first), wanted, allow_unused=True)
    return [g for g in (*first, *again) if g is not None and g.abs().max() > 1e-9]


def gradient_penalty(model, x):
    """WGAN-GP: a loss with the norm of the input's gradient, in one backward."""
    x = x.clone().requires_grad_()
    y = model(x)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    loss = y.mean() + (dx.flatten(1).norm(dim=1) - 1).pow(2).mean()
    return torch.autograd.grad(loss, [x, *parameters(model)][:3])


def hessian_vector(model, x):
    return torch.autograd.functional.hvp(lambda x: model(x).pow(2).sum(), x, torch.cos(x))


def third_order(model, x):
    x = x.clone().requires_grad_()
    g = model(x).sum()
    for _ in range(3):
        (g,) = torch.autograd.grad(g.sum(), x, create_graph=True)
    return g.detach()


def retained(model, x):
    """One graph, three backwards."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.sum().backward(retain_graph=True)
    y.pow(2).sum().backward(retain_graph=True)
    return [x.grad, torch.autograd.grad(y[0].sum(), x)[0]]


def some_inputs(model, x):
    """Only a part of the graph: the last parameters."""
    return torch.autograd.grad(model(x).pow(2).sum(), [model.prelu.weight, model.bn2.bias])


BACKWARDS = [double_backward, gradient_penalty, hessian_vector, third_order]


@pytest.mark.parametrize("derive", BACKWARDS, ids=lambda derive: derive.__name__)
@catches(first_order_only, training=True, gates=("frozen", "fused-eval"))
def test_backwards(make, training, derive):
    fused, plain = make.pair(equal_models(Pair, training))
    x = image()
    close(derive(fused, x), derive(plain, x))
    agree(fused, plain, x)  # the ordinary call after it
    assert layers(fused) == BOTH


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_result_that_is_an_argument(training):
    """AOTAutograd exports no such graph: its layers are calls, one by one, which have second derivatives too."""

    class WithItsInput(Pair):
        def forward(self, x):
            return super().forward(x), x

    plain = equal_models(WithItsInput, training)[0]
    fused = atrous.fuse(copy.deepcopy(plain))
    x = image()
    close(*(double_backward(model, x, lambda results: results[0]) for model in (fused, plain)))
    agree(fused, plain, x)


@catches(scales, training=True, variants=SHARED, gates=("fused-eval",))
def test_a_part_of_the_graph(make, training):
    fused, plain = make.pair(equal_models(Pair, training))
    x = image()
    close(retained(fused, x), retained(plain, x))
    close(some_inputs(fused, x), some_inputs(plain, x))
    for model in (fused, plain):
        model.conv1.requires_grad_(False)
    agree(fused, plain, x)
    for model in (fused, plain):
        model.requires_grad_(False)
        model.bn1.bias.requires_grad_()
    agree(fused, plain, x)


@catches(first_order_only, gates=("frozen",))
def test_gradgradcheck(make):
    fused, _ = make.pair(equal_models(Pair))
    x = image(1, size=3).requires_grad_()
    assert torch.autograd.gradcheck(fused, x)
    try:
        assert torch.autograd.gradgradcheck(fused, x)
    except RuntimeError as error:  # GradcheckError
        raise AssertionError(str(error)) from error


@catches(forgets_tangents, training=True, gates=("frozen", "fused-eval"))
def test_forward_mode(make, training):
    """Dual numbers as input and, where there are gradients, as a parameter."""
    fused, plain = make.pair(equal_models(Pair, training))
    x, results = image(), []
    agree(fused, plain, x)
    for model in (fused, plain):
        with fwAD.dual_level():
            y, tangent = fwAD.unpack_dual(model(fwAD.make_dual(x.clone(), torch.cos(x))))
            assert tangent is not None
            results.append([y.detach(), tangent.detach()])
    close(*results)
    agree(fused, plain, x)


FUNCTIONS = {
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).pow(2).sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones_like(x))[0],
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.cos(x),))[1],
    "jacrev": lambda f, x: torch.func.jacrev(lambda x: f(x)[0, :2, 0, 0])(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(lambda t: f(x + t)[0, :2, 0, 0])(torch.zeros(3, 1, 1, dtype=x.dtype)[:1]),
    "hessian": lambda f, x: torch.func.hessian(lambda t: f(x * t).sum())(torch.ones(2, dtype=x.dtype)[0]),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, -x])),
    "grad of vmap": lambda f, x: torch.func.grad(lambda x: torch.func.vmap(f)(x[:, None]).sum())(x),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@catches(scales, gates=("frozen",))
def test_functions(make, function):
    """torch.func over a fused model in eval."""
    fused, plain = make.pair(equal_models(Pair))
    x = image()
    close(function(fused, x), function(plain, x))
    agree(fused, plain, x)
    assert layers(fused) == BOTH


@catches(scales, variants=SHARED)
def test_functional_call(make):
    """With other parameters, alone, under grad, and under vmap over an ensemble of them."""
    fused, plain = make.pair(equal_models(Pair))
    others = [dict(equal_models(Pair)[0].state_dict()) for _ in range(3)]
    for i, other in enumerate(others):
        others[i] = {k: v * (1 + 0.1 * i) if v.is_floating_point() else v for k, v in other.items()}
    stacked = {name: torch.stack([other[name] for other in others]) for name in others[0]}
    x, results = image(), []
    for model in (fused, plain):
        call = torch.func.functional_call
        gradient = torch.func.grad(lambda state: call(model, state, (x,)).pow(2).sum())  # noqa: B023
        floating = {name: others[1][name] for name, _ in model.named_parameters()}
        ensemble = torch.func.vmap(lambda state: call(model, state, (x,)))(stacked)  # noqa: B023
        results.append([call(model, others[2], (x,)), ensemble, *gradient(floating).values()])
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-8)
    agree(fused, plain, x)


@catches(scales, training=True, variants=SHARED, gates=("fused-eval",))
def test_per_sample_gradients(make, training):
    """A loop over samples of one graph, and gradients accumulated over two batches."""
    fused, plain = make.pair(equal_models(Pair, training))
    x = image(3)
    for model in (fused, plain):
        y = model(x).flatten(1).sum(1)
        model.samples = [torch.autograd.grad(v, parameters(model), retain_graph=True) for v in y]
        model.zero_grad()
        for part in (x[:2], x[1:]):
            model(part).pow(2).mean().backward()
    torch.testing.assert_close(fused.samples, plain.samples, rtol=1e-8, atol=1e-8)
    for ours, theirs in zip(parameters(fused), parameters(plain)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-8)


@catches(scales, training=True, variants=SHARED, gates=("fused-eval",))
def test_gradients_of_other_layouts_and_zeros(make, training):
    """A loss whose gradient is expanded, of other strides, or None for one of two results."""

    class Two(Pair):
        def forward(self, x):
            y = self.first(x)
            return y, self.second(y, x), nn.functional.avg_pool2d(y, 2), y.permute(0, 2, 3, 1).sigmoid()

    fused, plain = make.pair(equal_models(Two, training))
    losses = [
        lambda y, z, p, s: z.sum(),
        lambda y, z, p, s: y.mean() + p.transpose(2, 3).pow(2).sum(),
        lambda y, z, p, s: z.to(memory_format=torch.channels_last).pow(3).sum(),
        lambda y, z, p, s: (z[:, ::2] * p.mean()).sum() + y[0, 0, 0, 0],
        lambda y, z, p, s: s.pow(2).sum() + s.transpose(1, 2).flatten(1).cumsum(1).mean(),
    ]
    for loss in losses:
        x, gradients = image(), []
        for model in (fused, plain):
            model.zero_grad()
            leaf = x.clone().requires_grad_()
            loss(*model(leaf)).backward()
            gradients.append([leaf.grad, *[p.grad for p in parameters(model)]])
        for ours, theirs in zip(*gradients):
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
