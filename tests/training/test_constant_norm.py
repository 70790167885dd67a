"""Layers after a BatchNorm of constant statistics: their gradients, computed from y, and what they save."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from parameters import HALVES
from saved_bytes import saved

import atrous
from atrous.autograd import sign
from atrous.ops import direct
from atrous.testing import assert_tensor

NAMES = ("x", "w", "bias", "gamma", "beta", "r")


def operands(dtype, layout, groups=1) -> dict:
    x, r, w = torch.randn(2, 8, 19, 17), torch.randn(2, 12, 10, 9), torch.randn(12, 8 // groups, 3, 3) / 8
    gamma = torch.randn(12)
    gamma[3] = 0.0
    o = dict(x=x, r=r, w=w, bias=torch.randn(12), gamma=gamma, beta=torch.randn(12))
    o = {name: value.to(dtype) for name, value in o.items()}
    o |= {name: value.contiguous(memory_format=layout) for name, value in o.items() if value.dim() == 4}
    return o | dict(mean=torch.randn(12).to(dtype), var=(torch.rand(12) + 0.5).to(dtype))


def plain(o, act, groups):
    z = F.conv2d(o["x"], o["w"], o["bias"], 2, 1, 1, groups)
    u = F.batch_norm(z, o["mean"], o["var"], o["gamma"], o["beta"])
    u = u if o["r"] is None else u + o["r"]
    return F.relu(u) if act == "relu" else F.leaky_relu(u, act) if act != 1.0 else u


def fused(o, act, groups, backend="auto"):
    norm = o["mean"], o["var"], o["gamma"], o["beta"]
    options = dict(slope=act, residual=o["r"], stride=2, padding=1, groups=groups, backend=backend)
    return atrous.conv_bn_act(o["x"], o["w"], o["bias"], *norm, **options)


def gradients(layer, o, frozen, *arguments) -> list:
    o = {name: value if value is None else value.detach().clone() for name, value in o.items()}
    leaves = [o[name].requires_grad_() for name in NAMES if o[name] is not None and name not in frozen]
    y = layer(o, *arguments)
    weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, weights)]


FROZEN = {"nothing": (), "the norm": ("gamma", "beta"), "the weight": ("w",), "all but gamma": ("x", "w", "bias", "r"),
          "all but x": ("w", "bias", "gamma", "beta", "r"), "the input": ("x",)}  # fmt: skip


@pytest.mark.parametrize("absent", [(), ("r",), ("bias",), ("gamma", "beta"), ("bias", "r", "gamma", "beta")], ids=str)
@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("act", ["relu", 0.1, 0.0, 1.0])
def test_gradients(act, frozen, absent):
    """One channel has a gamma of 0, from which z cannot be recovered."""
    for groups, layout in ((1, torch.channels_last), (4, torch.contiguous_format)):
        o = operands(torch.float32, layout, groups) | dict.fromkeys(absent)
        wide = {name: value if value is None else value.double() for name, value in o.items()}
        if not any(o[name] is not None and name not in frozen for name in NAMES):
            continue
        for backend in ("library", "auto"):
            actual = gradients(fused, o, frozen, act, groups, backend)
            expected = gradients(plain, wide, frozen, act, groups)
            for one, eager, truth in zip(actual, gradients(plain, o, frozen, act, groups), expected, strict=True):
                assert_tensor(one, eager, truth, relative=1e-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_of_low_precision(dtype):
    """dw is rounded twice, once before it is scaled, and dgamma is computed from it: 1.4 and 2.2 times eager's error.

    The median shows that; the largest error is that of the few u whose sign depends on the rounding of z.
    """
    o = operands(dtype, torch.channels_last)
    wide = {name: value.double() for name, value in o.items()}
    calls = (fused, o), (plain, o), (plain, wide)
    actual, eager, truth = (gradients(layer, given, (), "relu", 1) for layer, given in calls)
    for name, ours, plains, exact in zip(("y", *NAMES), actual, eager, truth, strict=True):
        error, budget = ((one.double() - exact).abs().median() for one in (ours, plains))
        assert error <= budget * (4.0 if exact.dim() == 1 else 2.0), name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("act", ["relu", 1.0])
def test_gradients_of_the_input_in_low_precision(act, dtype):
    """Sums of 8 terms: a weight that is scaled and rounded would have the same error at every pixel."""
    for _ in range(8):
        o = dict(x=torch.randn(2, 64, 9, 7), w=torch.randn(8, 64, 1, 1) / 8, gamma=torch.randn(8), beta=torch.randn(8))
        o = {name: value.to(dtype) for name, value in o.items()} | dict.fromkeys(("bias", "r"))
        o |= dict(mean=torch.zeros(8, dtype=dtype), var=(torch.rand(8) + 0.5).to(dtype))
        wide = {name: value if value is None else value.double() for name, value in o.items()}
        calls = (fused, o), (plain, o), (plain, wide)
        assert_tensor(*(gradients(layer, given, FROZEN["all but x"], act, 1)[1] for layer, given in calls))


@pytest.mark.parametrize("act", ["relu", 0.1, 1.0])
def test_second_derivatives(act):
    o = operands(torch.float64, torch.contiguous_format)
    leaves = [o[name].requires_grad_() for name in NAMES]
    results = []
    for layer in (fused, plain):
        first = torch.autograd.grad(layer(o, act, 1).square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(one.square().sum() for one in first), leaves))
    for actual, truth in zip(*results, strict=True):
        torch.testing.assert_close(actual, truth)


@pytest.mark.parametrize("act, maps", [("relu", 1), (0.1, 1), (1.0, 0)])
def test_z_is_not_saved(act, maps):
    """Besides x: y, or nothing of the layer without an activation."""
    o = operands(torch.float32, torch.channels_last)
    for name in NAMES:
        o[name].requires_grad_()
    y, bytes_saved = saved(lambda: fused(o, act, 1), *o.values())
    assert bytes_saved <= maps * y.nbytes + 1024


@pytest.mark.parametrize("act", ["relu", 1.0])
@pytest.mark.parametrize("pixels", [2, 6])
def test_a_weight_much_larger_than_its_maps_is_not_scaled(pixels, act, monkeypatch):
    """There z is saved: with few pixels the passes over a weight would take longer than its gradient."""
    monkeypatch.setattr(direct, "_LARGEST_SAVED", 0)  # a shorter way for small tensors saves z in any case
    o = dict(x=torch.randn(1, 32, pixels, pixels), w=torch.randn(16, 32, 3, 3) / 8, bias=None, r=None)
    o |= dict(gamma=torch.rand(16) + 0.5, beta=torch.randn(16), mean=torch.randn(16), var=torch.rand(16) + 0.5)
    for name in ("x", "w", "gamma", "beta"):
        o[name].requires_grad_()

    def layer():
        norm = o["mean"], o["var"], o["gamma"], o["beta"]
        return atrous.conv_bn_act(o["x"], o["w"], None, *norm, slope=act, padding=1, training=False)

    y = layer()
    with mock.patch.object(sign, "gradients", wraps=sign.gradients) as from_y:
        actual = torch.autograd.grad(y.square().sum(), [o[name] for name in ("x", "w", "gamma", "beta")])
    assert from_y.called == (9 * 32 <= sign.LARGER * pixels**2)
    wide = {name: value if value is None else value.detach().double().requires_grad_() for name, value in o.items()}
    z = F.conv2d(wide["x"], wide["w"], padding=1)
    u = F.batch_norm(z, wide["mean"].detach(), wide["var"].detach(), wide["gamma"], wide["beta"])
    truth = torch.autograd.grad(
        (F.relu(u) if act == "relu" else u).square().sum(), [wide[name] for name in ("x", "w", "gamma", "beta")]
    )
    for one, exact in zip(actual, truth, strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
