"""CASES.md, framework: gradcheck in fp64, who needs gradients."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
from oracle import make_site
from torch.autograd import gradcheck

import atrous

SLOPES = {"relu": "relu", "number": 0.3, "shared": torch.tensor([0.2]), "channels": torch.rand(6), "identity": 1.0}


@pytest.mark.parametrize("training, after", [(False, True), (True, False)])
@pytest.mark.parametrize("slope", SLOPES.values(), ids=SLOPES)
def test_gradcheck(row, slope, after, training):
    site = make_site(channels=2, size=(4, 5), padding=1, dtype=torch.float64)
    site |= dict(residual=torch.randn(2, 6, 4, 5).double())
    if isinstance(slope, torch.Tensor):
        site["slope"], fixed = slope.double(), {}
    else:
        fixed = dict(slope=slope)
    fixed |= {name: site.pop(name) for name in ("running_mean", "running_var", "groups", "padding")}
    names = list(site)

    def call(*tensors):
        statistics = {name: fixed[name].clone() for name in ("running_mean", "running_var")}
        return atrous.conv_bn_act(
            **dict(zip(names, tensors)),
            **fixed | statistics,
            residual_after_act=after,
            training=training,
            backend=row,
        )

    leaves = tuple(tensor.requires_grad_() for tensor in site.values())
    if row == "triton":  # it does not convolve in fp64
        with pytest.raises(RuntimeError, match="triton: input: expected float16, bfloat16 or float32 to convolve"):
            call(*leaves)
        return
    assert gradcheck(call, leaves, fast_mode=True)


def test_gradcheck_of_bn_act_and_add_act(row):
    x, r, v = torch.randn(2, 6, 3, 3).double(), torch.randn(2, 6, 3, 3).double(), torch.rand(6).double() + 0.5
    inputs = tuple(tensor.requires_grad_() for tensor in (x, r, v, v.detach().clone(), v.detach().clone()))
    statistics = (torch.zeros(6).double(), torch.ones(6).double())
    row = dict(backend=row)
    assert gradcheck(
        lambda x, r, g, b, s: atrous.bn_act(x, *statistics, g, b, slope=s, residual=r, **row), inputs, fast_mode=True
    )
    assert gradcheck(lambda x, r, s: atrous.add_act(x, r, slope=s, **row), (*inputs[:2], inputs[4]), fast_mode=True)


NEEDS = ("input", "weight", "bias", "bn_weight", "bn_bias", "slope", "residual")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("needs", [*((name,) for name in NEEDS), ("weight", "residual"), NEEDS])
def test_only_some_inputs_need_gradients(row, needs, training):
    site = make_site(padding=1, slope=torch.rand(6), residual=torch.randn(2, 6, 9, 8), training=training)
    found, expected = copy.deepcopy(site), copy.deepcopy(site)
    for arguments, call in ((found, atrous.conv_bn_act), (expected, oracle.conv_bn_act)):
        for name in needs:
            arguments[name].requires_grad_()
        options = dict(backend=row) if call is atrous.conv_bn_act else {}
        y = call(**arguments, **options)
        assert y.requires_grad
        y.square().sum().backward()
    for name in NEEDS:
        torch.testing.assert_close(found[name].grad, expected[name].grad, rtol=1e-4, atol=1e-3)
        assert (found[name].grad is not None) == (name in needs)
