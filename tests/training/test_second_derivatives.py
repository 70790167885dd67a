"""Derivatives of gradients (create_graph=True): gradgradcheck, penalties and Hessian products equal plain torch's."""

from __future__ import annotations

import copy
import statistics
from functools import cache

import pytest
import torch
from oracle import make_plain, ours_of
from torch import nn
from torch.autograd import gradgradcheck
from training import fused_and_plain, network

import atrous
from atrous.autograd.max_pool import max_pool2d

SLOPES = {"relu": "relu", "number": 0.3, "negative": -0.5, "identity": 1.0, "random": (0.1, 0.4), "channels": "tensor"}
NEEDS = [(True, True, True), (True, False, True), (False, True, True), (False, False, True), (True, False, False)]
EXACT = dict(rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("place", [None, "before", "after"])
@pytest.mark.parametrize("norm", ["none", "eval", "training"])
@pytest.mark.parametrize("slope", SLOPES)
def test_gradgradcheck_of_convolutions(slope, norm, place):
    x, w, b, r = (torch.randn(*size).double() for size in ((2, 2, 4, 3), (3, 2, 3, 3), (3,), (2, 3, 4, 3)))
    v = [torch.rand(3).double() + 0.5 for _ in range(5)]
    fixed = dict(running_mean=v[0], running_var=v[1]) if norm == "eval" else dict(training=norm == "training")

    def layer(x, w, b, gamma, beta, slopes, r):
        torch.manual_seed(1)
        norms = dict(bn_weight=gamma, bn_bias=beta) if norm != "none" else {}
        residual = dict(residual=r, residual_after_act=place == "after") if place else {}
        act = slopes if slope == "channels" else SLOPES[slope]
        return atrous.conv_bn_act(x, w, b, **norms, **residual, **fixed, slope=act, padding=1)

    tensors = (x, w, b, *v[2:], r)
    for needs_x, needs_w, needs_rest in NEEDS:
        needs = (needs_x, needs_w, *(needs_rest,) * 5)
        leaves = [t.detach().clone().requires_grad_(need) for t, need in zip(tensors, needs)]
        if layer(*leaves).requires_grad:
            assert gradgradcheck(layer, leaves, fast_mode=True)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("slope", SLOPES)
def test_gradgradcheck_without_a_convolution(slope, dropout):
    x, r = torch.randn(2, 3, 4, 3).double(), torch.randn(2, 3, 4, 3).double()
    v = [torch.rand(3).double() + 0.5 for _ in range(5)]

    def layers(x, r, gamma, beta, slopes):
        torch.manual_seed(1)
        act = slopes if slope == "channels" else SLOPES[slope]
        if dropout:
            return atrous.add_act(x, r, slope=act, dropout=dropout, training=True)
        evaluated = atrous.bn_act(x, *v[:2], gamma, beta, slope=act, residual=r)
        return evaluated, atrous.bn_act(x, None, None, gamma, beta, slope=act, training=True), atrous.add_act(x, r)

    assert gradgradcheck(layers, [t.requires_grad_() for t in (x, r, *v[2:])], fast_mode=True)


def results(model, x, loss, frozen=""):
    """y, the gradients of the loss, which itself contains gradients, and the buffers."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and frozen in name))
    x = x.clone().requires_grad_()
    y = model(x)
    loss(model, x, y).backward()
    gradients = {"input": x.grad} | {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {"y": y.detach()} | gradients | {name: b.clone() for name, b in model.named_buffers()}


def penalty(model, x, y):
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return y.sum() + dx.square().sum()


def hessian_product(model, x, y):
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
    return sum((g * torch.linspace(-1, 1, g.numel()).to(g).view_as(g)).sum() for g in gradients)


def third(model, x, y):
    (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.pow(3).sum(), x, create_graph=True)
    return ddx.square().sum()


@cache
def fused_network(act, frozen):
    """One fused network for all tests that freeze the same parameters, so that its graph is compiled once."""
    return fused_and_plain(act)[0].double()


@pytest.mark.parametrize("frozen", ["", "conv", "bn", "weight", "act"])
@pytest.mark.parametrize("loss", [penalty, hessian_product, third])
@pytest.mark.parametrize("act", ["prelu", "relu", "leaky_relu"])
def test_a_network_in_training(act, loss, frozen):
    """The inputs and residuals of its layers are recomputed in the backward; the statistics are updated once."""
    fused, plain = fused_network(act, frozen), network(act).double()
    fused.load_state_dict(plain.state_dict())
    fused.zero_grad()
    x = torch.randn(4, 3, 10, 10).double()
    actual, expected = (results(model, x, loss, frozen) for model in (fused, plain))
    assert actual.keys() == expected.keys() and actual["0.bn1.num_batches_tracked"] == 1
    for name, value in expected.items():
        scale = value.abs().max().item() if value is not None and value.is_floating_point() else 1.0
        assert (actual[name] is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(actual[name], value, rtol=1e-7, atol=1e-8 * scale, msg=f"{name} differs")


@pytest.mark.parametrize("alive", [True, False])
def test_a_derivative_for_an_output_inside(alive):
    """The second layer recomputes its input h, which has the same place in the graph whether or not h is alive."""
    plain = [make_plain(nn.PReLU(6)).double(), make_plain(nn.PReLU(6), channels=6).double()]
    answers = []
    for first, second in ([ours_of(layer, "auto") for layer in plain], plain):
        x = torch.linspace(-1, 1, 576).double().reshape(2, 4, 9, 8).requires_grad_()
        h = first(x)
        edge = torch.autograd.graph.get_gradient_edge(h)
        y = second(h)
        wanted = h if alive else edge
        del h
        (dh,) = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        answers.append(torch.autograd.grad(dh.square().sum(), (wanted, x)))
    torch.testing.assert_close(*answers, **EXACT)


def test_gradients_that_only_a_sign_connects():
    """The gradient of a layer without learned tensors can be differentiated, and that derivative is 0."""
    convolution = nn.Conv2d(3, 3, 3).double().requires_grad_(False)
    for layer in (atrous.nn.AddAct(nn.ReLU()), atrous.nn.AddAct(nn.LeakyReLU(0.1))):
        x, o = (torch.randn(2, 3, 4, 4).double().requires_grad_() for _ in range(2))
        (dx,) = torch.autograd.grad(layer(x, o).sum(), x, create_graph=True)
        assert not torch.autograd.grad(dx.square().sum(), x)[0].any()
    x = torch.randn(2, 3, 4, 4).double().requires_grad_()
    layer = atrous.nn.ConvBNAct2d(convolution, None, nn.ReLU())
    (dx,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    assert not torch.autograd.grad(dx.square().sum(), x)[0].any()


@pytest.mark.parametrize("geometry", [(2, 2, 0, 1, False), (3, 2, 1, 1, True), ((3, 2), (1, 2), (1, 0), (1, 2), False)])
def test_max_pool(geometry):
    x = torch.randn(2, 3, 7, 6).double().requires_grad_()
    layer = lambda x: max_pool2d(x * x, *geometry)  # noqa: E731
    plain = lambda x: nn.functional.max_pool2d(x * x, *geometry)  # noqa: E731
    assert gradgradcheck(layer, x)
    for run in (
        lambda f: torch.func.jvp(f, (x.detach(),), (x.detach(),)),
        lambda f: torch.func.hessian(lambda x: f(x).square().sum())(x.detach()),
        lambda f: torch.vmap(f)(x.detach()[None]),
    ):
        torch.testing.assert_close(run(layer), run(plain), **EXACT)


def low_precision_penalty(module, x, dtype):
    """The gradients of a penalty of dx under autocast to dtype, in fp64; without autocast if dtype is None."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        (dx,) = torch.autograd.grad(module(x).double().square().mean(), x, create_graph=True)
        dx.square().sum().backward()
    return torch.cat([p.grad.double().flatten() for p in (module.conv.weight, module.bn.weight)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_penalty_under_autocast(dtype):
    """As near to fp64 as plain torch's; a rounding at the activation's kink changes either, hence the median."""
    ratios = []
    for _ in range(7):
        plain, x = make_plain(nn.LeakyReLU(0.2)).train(), torch.randn(2, 4, 9, 8)
        exact = low_precision_penalty(copy.deepcopy(plain).double(), x.double(), None)
        ours, eager = (low_precision_penalty(module, x, dtype) - exact for module in (ours_of(plain, "auto"), plain))
        ratios.append((ours.norm() / eager.norm()).item())
    assert statistics.median(ratios) <= 1.2, ratios
