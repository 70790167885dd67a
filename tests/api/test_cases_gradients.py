"""Edge cases of gradients: gradcheck in fp64, and subsets of the inputs that require gradients."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
from oracle import conv_arguments
from torch.autograd import gradcheck

import atrous

SLOPES = {"relu": "relu", "number": 0.3, "shared": torch.tensor([0.2]), "channels": torch.rand(6), "identity": 1.0}


@pytest.mark.parametrize("training, after", [(False, True), (True, False)])
@pytest.mark.parametrize("slope", SLOPES.values(), ids=SLOPES)
def test_gradcheck(backend, slope, after, training):
    arguments = conv_arguments(channels=2, size=(4, 5), padding=1, dtype=torch.float64)
    arguments |= dict(residual=torch.randn(2, 6, 4, 5).double())
    if isinstance(slope, torch.Tensor):
        arguments["slope"], fixed = slope.double(), {}
    else:
        fixed = dict(slope=slope)
    fixed |= {name: arguments.pop(name) for name in ("running_mean", "running_var", "groups", "padding")}
    names = list(arguments)

    def call(*tensors):
        statistics = {name: fixed[name].clone() for name in ("running_mean", "running_var")}
        return atrous.conv_bn_act(
            **dict(zip(names, tensors)),
            **fixed | statistics,
            residual_after_act=after,
            training=training,
            backend=backend,
        )

    leaves = tuple(tensor.requires_grad_() for tensor in arguments.values())
    if backend == "triton":  # Triton does not convolve in fp64
        with pytest.raises(RuntimeError, match="triton: input: expected float16, bfloat16 or float32 to convolve"):
            call(*leaves)
        return
    assert gradcheck(call, leaves, fast_mode=True)


def test_gradcheck_of_bn_act_and_add_act(backend):
    x, r, v = torch.randn(2, 6, 3, 3).double(), torch.randn(2, 6, 3, 3).double(), torch.rand(6).double() + 0.5
    inputs = tuple(tensor.requires_grad_() for tensor in (x, r, v, v.detach().clone(), v.detach().clone()))
    statistics = (torch.zeros(6).double(), torch.ones(6).double())
    options = dict(backend=backend)
    assert gradcheck(
        lambda x, r, g, b, s: atrous.bn_act(x, *statistics, g, b, slope=s, residual=r, **options),
        inputs,
        fast_mode=True,
    )
    assert gradcheck(lambda x, r, s: atrous.add_act(x, r, slope=s, **options), (*inputs[:2], inputs[4]), fast_mode=True)


NEEDS = ("input", "weight", "bias", "bn_weight", "bn_bias", "slope", "residual")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("needs", [*((name,) for name in NEEDS), ("weight", "residual"), NEEDS])
def test_only_some_inputs_need_gradients(backend, needs, training):
    arguments = conv_arguments(padding=1, slope=torch.rand(6), residual=torch.randn(2, 6, 9, 8), training=training)
    ours, eager = copy.deepcopy(arguments), copy.deepcopy(arguments)
    for arguments, call in ((ours, atrous.conv_bn_act), (eager, oracle.conv_bn_act)):
        for name in needs:
            arguments[name].requires_grad_()
        options = dict(backend=backend) if call is atrous.conv_bn_act else {}
        y = call(**arguments, **options)
        assert y.requires_grad
        y.square().sum().backward()
    for name in NEEDS:
        torch.testing.assert_close(ours[name].grad, eager[name].grad, rtol=1e-4, atol=1e-3)
        assert (ours[name].grad is not None) == (name in needs)
