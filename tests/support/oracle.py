"""Eager references of the public operators, and calls compared with them by the error budget of atrous.testing."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atrous
from atrous import testing
from atrous.core.spec import Epilogue

# Factories: this file is imported before the default device is set.
ACTS = {
    "none": lambda: None, "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.2), "prelu": lambda: nn.PReLU(6),
    "rrelu": nn.RReLU,
}  # fmt: skip
C, R = TypeVar("C"), TypeVar("R")
DRAWS = 6  # attempts with new values for a case over budget: results of few elements are, by chance, in one of ten
REFUSALS = (TypeError, ValueError, RuntimeError)  # NotImplementedError is a RuntimeError


def retried(check: Callable[[C], R], case: C) -> R:
    """check(case). A case over its budget is tried with other `values`, a seed, first: a fault exceeds it again."""
    for values in range(case.values, case.values + DRAWS - 1):
        with contextlib.suppress(testing.OverBudget):
            return check(case._replace(values=values))
    return check(case._replace(values=case.values + DRAWS - 1))


def activate(u, slope):
    if isinstance(slope, Tensor):
        return F.prelu(u, slope)
    if isinstance(slope, tuple):
        return F.rrelu(u, *slope, training=True)
    if slope == "relu":
        return F.relu(u)
    return u if slope == 1.0 else F.leaky_relu(u, slope)


def conv_bn_act(
    input,
    weight,
    bias=None,
    running_mean=None,
    running_var=None,
    bn_weight=None,
    bn_bias=None,
    *,
    slope=1.0,
    residual=None,
    residual_after_act=False,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    training=False,
    momentum=0.1,
    eps=1e-5,
):
    """nn.Conv2d -> nn.BatchNorm2d -> add -> activation with the signature of atrous.conv_bn_act."""
    z = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if not training and running_mean is None:
        return finish(z, slope, residual, residual_after_act)
    return bn_act(
        z,
        running_mean,
        running_var,
        bn_weight,
        bn_bias,
        slope=slope,
        residual=residual,
        residual_after_act=residual_after_act,
        training=training,
        momentum=momentum,
        eps=eps,
    )


def bn_act(
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    *,
    slope=1.0,
    residual=None,
    residual_after_act=False,
    training=False,
    momentum=0.1,
    eps=1e-5,
):
    if input.dim() != 4:
        raise ValueError(f"expected 4D input (got {input.dim()}D input)")  # the message of nn.BatchNorm2d
    u = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return finish(u, slope, residual, residual_after_act)


def finish(u, slope, residual, residual_after_act):
    if residual is not None and not residual_after_act:
        u = u + residual
    y = activate(u, slope)
    return y + residual if residual is not None and residual_after_act else y


def add_act(input, other, *, slope=1.0, dropout=0.0, training=False):
    return F.dropout(activate(input + other, slope), dropout, training)


class Plain(nn.Module):
    """The plain modules of a ConvBNAct2d, with the same names of parameters and buffers."""

    def __init__(self, conv, bn=None, act=None, residual_after_act=False):
        super().__init__()
        self.conv, self.bn, self.act, self.residual_after_act = conv, bn, act, residual_after_act

    def forward(self, input, residual=None):
        u = self.conv(input)
        u = u if self.bn is None else self.bn(u)
        u = u if residual is None or self.residual_after_act else u + residual
        y = u if self.act is None else self.act(u)
        return y + residual if residual is not None and self.residual_after_act else y


def conv_arguments(
    channels=4, out=6, size=(9, 8), kernel=(3, 3), batch=2, groups=1, dtype=torch.float32, bn=True, **options
):
    """Returns random keyword arguments of conv_bn_act; bn=False leaves the BatchNorm out."""
    arguments = dict(
        input=torch.randn(batch, channels, *size),
        weight=torch.randn(out, channels // groups, *kernel) * 0.3,
        bias=torch.randn(out),
    )
    if bn:
        arguments |= dict(
            running_mean=torch.randn(out),
            running_var=torch.rand(out) + 0.5,
            bn_weight=torch.randn(out),
            bn_bias=torch.randn(out),
        )
    return {name: value.to(dtype) for name, value in arguments.items()} | dict(groups=groups) | options


def make_plain(act=None, bn=True, channels=4, out=6, residual_after_act=False, **options):
    """Returns a Plain layer whose BatchNorm has non-trivial parameters and statistics."""
    norm = nn.BatchNorm2d(out) if bn is True else bn or None
    for name, low in (("running_mean", -1.0), ("running_var", 0.5), ("weight", -1.0), ("bias", -1.0)):
        if getattr(norm, name, None) is not None:
            getattr(norm, name).data.uniform_(low, 1.5)
    return Plain(nn.Conv2d(channels, out, 3, **{"padding": 1, **options}), norm, act, residual_after_act)


def ours_of(plain, backend):
    """Returns a ConvBNAct2d of copies of the plain module's children."""
    conv, bn, act = (copy.deepcopy(child) for child in (plain.conv, plain.bn, plain.act))
    module = atrous.nn.ConvBNAct2d(conv, bn, act, plain.residual_after_act, backend=backend)
    return module.train(plain.training)


def module_and_input(backend, act="prelu"):
    """Returns a ConvBNAct2d, the plain module that it copies (both in eval), and an input."""
    plain = make_plain(ACTS[act]()).eval()
    ours, x = ours_of(plain, backend), torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        ours(x)  # not in a compiler yet: the test is skipped if the backend refuses the call
    return ours, plain, x


def wide(value):
    """Converts tensors, modules, epilogues and dicts of them to fp64; other values stay."""
    if isinstance(value, Epilogue):
        return Epilogue(*map(wide, value))
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Tensor):
        return value.detach().double().requires_grad_(value.requires_grad) if value.is_floating_point() else value
    return {name: wide(v) for name, v in value.items()} if isinstance(value, dict) else value


def layout(tensor):
    """Returns the strides of the dimensions with more than one element; the others are arbitrary."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride()) if size > 1] if tensor.numel() else []


class Margins:
    """Places tensors in memory full of NaN, to catch accesses around them or between their elements."""

    def __init__(self):
        self.guards = []

    def place(self, tensor, margin=67):  # odd, so that nothing is aligned by chance
        """Returns the same values and strides, `margin` elements into such memory."""
        if not tensor.numel():
            return tensor
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        memory = torch.full((extent + 2 * margin,), float("nan"), dtype=tensor.dtype, device=tensor.device)
        inside = memory.as_strided(tensor.shape, tensor.stride(), margin).copy_(tensor)
        outside = torch.ones_like(memory, dtype=torch.bool)
        outside.as_strided(tensor.shape, tensor.stride(), margin).fill_(False)
        self.guards.append((memory, outside))
        return inside

    def check(self):
        assert all(memory[outside].isnan().all() for memory, outside in self.guards), (
            "memory outside a tensor was written"
        )


def agree(function, backend, arguments, same_layout=True):
    """Asserts that atrous.<function> of these arguments agrees with eager; returns its result."""
    eager = globals()[function](**arguments)
    result = getattr(atrous, function)(**arguments, backend=backend)
    testing.assert_tensor(result, eager, globals()[function](**wide(arguments)))
    assert not same_layout or layout(result) == layout(eager), f"strides {result.stride()}, eager {eager.stride()}"
    return result


def refuse(ours, eager, named):
    """Asserts that ours raises the exception type of eager, with a message that names the argument (a regex)."""
    with pytest.raises(Exception) as theirs:
        eager()
    with pytest.raises(theirs.type) as error:
        ours()
    assert re.search(rf"\b({named})\b", str(error.value)), f"the message does not name {named}: {error.value}"


def agree_or_refuse(ours, eager, named, truth=None, arithmetic=None):
    """Asserts that ours agrees with eager or refuses by naming the argument; for calls that no network needs.

    Without a truth, as for integers, the results must be eager's but for torch's own tolerance.
    """
    expected = eager()
    try:
        result = ours()
    except REFUSALS as error:
        assert re.search(rf"\b({named})\b", str(error)), f"the message does not name {named}: {error}"
        return
    if truth is not None:
        relative = testing.roundings(expected.dtype, arithmetic=arithmetic)
        return testing.assert_tensor(result, expected, truth, relative=relative)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
