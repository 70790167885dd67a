"""In-place changes between a layer's forward and its backward: the right gradient, or eager's error."""

from __future__ import annotations

import operator
from functools import partial
from typing import NamedTuple

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import atrous


class LayerTensors(NamedTuple):
    """The tensors that a user can change after a layer ran: its output and its arguments."""

    y: Tensor
    x: Tensor
    residual: Tensor
    gamma: Tensor


# A change between two forwards, or after all of them, returns the tensor that replaces y, or None.
def change_gamma(t):
    with torch.no_grad():
        t.gamma.mul_(2.0)


def silent(change):
    """The change, without its result replacing y."""

    def run(t):
        change(t)

    return run


def zero_a_channel(t):
    t.y[:, 0] = 0.0


CHANGES = {  # name -> (the change, the same as a function of y without in-place operations)
    "add_": (lambda t: t.y.add_(1.0), lambda y: y + 1.0),
    "+=": (lambda t: operator.iadd(t.y, 1.0), lambda y: y + 1.0),
    "relu_": (lambda t: F.relu_(t.y), lambda y: F.relu(y)),
    "[:, 0] = 0": (zero_a_channel, lambda y: y * (torch.arange(4) > 0).view(-1, 1, 1)),
    "of a view": (silent(lambda t: t.y[1].mul_(3.0)), lambda y: torch.stack([y[0], y[1] * 3.0])),
    "of the detached": (silent(lambda t: t.y.detach().mul_(2.0)), lambda y: y + y.detach()),
    "input": (silent(lambda t: t.x.add_(1.0)), lambda y: y),
    "residual": (silent(lambda t: t.residual.add_(1.0)), lambda y: y),
    "gamma": (change_gamma, lambda y: y),
    "a view": (lambda t: t.y.transpose(2, 3), lambda y: y.transpose(2, 3)),
    "detached": (lambda t: t.y.detach(), lambda y: y.detach()),
    "used twice": (lambda t: t.y * t.y.mean() + t.y, lambda y: y * y.mean() + y),
}


def block(call, change, after, x, r, w, gamma, beta, slope):
    """Three layers with batch statistics, as in a ResNet: y is the second's input and the third's residual."""
    x, r, norm = x * 1.0, r * 1.0, (None, None, None)  # not leaves: eager does not allow in-place changes of those
    options = dict(slope=slope, padding=1, training=True)
    y = call(x, w, *norm, gamma, beta, residual=r, **options)
    tensors = LayerTensors(y, x, r, gamma)
    changed = None if after else change(tensors)
    y = y if changed is None else changed
    inner = call(y, w.flip(0), *norm, beta, beta * 0.5, **options)
    result = call(inner, w.flip(1), *norm, beta, beta * 0.25, residual=y, **options)
    if after:
        change(tensors)
    return result


def gradients(run, leaves):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    y = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves, allow_unused=True, materialize_grads=True)]


def gradients_or_error(call, change, after, leaves, compiled=False):
    run = partial(block, call, change, after)
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(run, fullgraph=True, backend="aot_eager")
    try:
        return gradients(run, leaves)
    except RuntimeError as error:
        if isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        return error


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.gate)])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place(name, after, compiled):
    """The gradient is that of the values used in the forward.

    An error is raised only where eager raises one too, or for a residual, which a layer saves and eager's sum does not.
    """
    leaves = [torch.randn(*size).double() for size in ((2, 4, 6, 5), (2, 4, 6, 5), (4, 4, 3, 3), (4,), (4,), (4,))]
    change, pure = CHANGES[name]
    truth = gradients_or_error(oracle.conv_bn_act, lambda t: pure(t.y), after, leaves)
    eager = gradients_or_error(oracle.conv_bn_act, change, after, leaves)
    ours = gradients_or_error(atrous.conv_bn_act, change, after, leaves, compiled)
    if isinstance(eager, RuntimeError) and isinstance(ours, RuntimeError):
        return
    if not isinstance(eager, RuntimeError):
        torch.testing.assert_close(eager, truth)
    if name == "residual" and isinstance(ours, RuntimeError) and not compiled:
        assert "modified by an inplace operation" in str(ours)
        return
    assert not isinstance(ours, RuntimeError), f"eager has a gradient, ours raises: {ours}"
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


def test_data_of_the_output():
    """y.data.mul_(2) does not change the version, so a recomputed y misses it; recompute=False does not."""
    leaves = [torch.randn(*size).double() for size in ((2, 4, 6, 5), (2, 4, 6, 5), (4, 4, 3, 3), (4,), (4,), (4,))]
    change = silent(lambda t: t.y.data.mul_(2.0))
    eager = gradients_or_error(oracle.conv_bn_act, change, False, leaves)
    ours = gradients_or_error(partial(atrous.conv_bn_act, recompute=False), change, False, leaves)
    torch.testing.assert_close(ours, eager, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("compiled", [False, True])
def test_one_tensor_in_two_places(compiled):
    """act(bn(conv(x)) + x), and one vector for gamma, beta and slope."""
    leaves = [torch.randn(*size).double() for size in ((2, 4, 6, 5), (4, 4, 3, 3), (4,))]

    def run(call, x, w, v):
        return call(x, w, None, None, None, v, v, slope=v, residual=x, padding=1, training=True)

    ours = partial(run, atrous.conv_bn_act)
    if compiled:
        torch._dynamo.reset()
        ours = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(ours, leaves), gradients(partial(run, oracle.conv_bn_act), leaves))
