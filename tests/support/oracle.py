"""What eager does, and how far from it and from fp64 a result of ours may be.

The budget, stated once: the largest absolute error against fp64 is at most 1.25 times eager's own, or half a unit in
the last place of the result's dtype plus 32 units of the arithmetic's, both at the largest magnitude of the truth.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atrous

RATIO, ARITHMETIC_UNITS, STORAGE_UNITS = 1.25, 32, 0.5
# What makes them: this file is imported before the default device is set.
ACTS = {
    "none": lambda: None, "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.2), "prelu": lambda: nn.PReLU(6),
    "rrelu": nn.RReLU,
}  # fmt: skip
REFUSALS = (TypeError, ValueError, RuntimeError)  # NotImplementedError is a RuntimeError


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
        raise ValueError(f"expected 4D input (got {input.dim()}D input)")  # what nn.BatchNorm2d says
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
    """The three plain modules of a ConvBNAct2d, with the same names of parameters and buffers."""

    def __init__(self, conv, bn=None, act=None, residual_after_act=False):
        super().__init__()
        self.conv, self.bn, self.act, self.residual_after_act = conv, bn, act, residual_after_act

    def forward(self, input, residual=None):
        u = self.conv(input)
        u = u if self.bn is None else self.bn(u)
        u = u if residual is None or self.residual_after_act else u + residual
        y = u if self.act is None else self.act(u)
        return y + residual if residual is not None and self.residual_after_act else y


def make_site(
    channels=4, out=6, size=(9, 8), kernel=(3, 3), batch=2, groups=1, dtype=torch.float32, bn=True, **options
):
    """Random arguments of conv_bn_act by name; bn=False leaves the BatchNorm out."""
    site = dict(
        input=torch.randn(batch, channels, *size),
        weight=torch.randn(out, channels // groups, *kernel) * 0.3,
        bias=torch.randn(out),
    )
    if bn:
        site |= dict(
            running_mean=torch.randn(out),
            running_var=torch.rand(out) + 0.5,
            bn_weight=torch.randn(out),
            bn_bias=torch.randn(out),
        )
    return {name: value.to(dtype) for name, value in site.items()} | dict(groups=groups) | options


def make_plain(act=None, bn=True, channels=4, out=6, residual_after_act=False, **options):
    """A Plain site whose BatchNorm has seen something."""
    norm = nn.BatchNorm2d(out) if bn is True else bn or None
    for name, low in (("running_mean", -1.0), ("running_var", 0.5), ("weight", -1.0), ("bias", -1.0)):
        if getattr(norm, name, None) is not None:
            getattr(norm, name).data.uniform_(low, 1.5)
    return Plain(nn.Conv2d(channels, out, 3, **{"padding": 1, **options}), norm, act, residual_after_act)


def ours_of(plain, row):
    """Our module around copies of the plain one's children."""
    conv, bn, act = (copy.deepcopy(child) for child in (plain.conv, plain.bn, plain.act))
    module = atrous.nn.ConvBNAct2d(conv, bn, act, plain.residual_after_act, backend=row)
    return module.train(plain.training)


def module_and_input(row, act="prelu"):
    """Our module, the plain one whose copy it is (both in eval), and an input."""
    plain = make_plain(ACTS[act]()).eval()
    return ours_of(plain, row), plain, torch.randn(2, 4, 9, 8)


def wide(value):
    """The same in fp64: tensors, modules, and containers of them; slopes and shapes stay."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Tensor):
        return value.detach().double().requires_grad_(value.requires_grad) if value.is_floating_point() else value
    return {name: wide(v) for name, v in value.items()} if isinstance(value, dict) else value


def layout(tensor):
    """Strides of the dimensions that have more than one element: the others mean nothing."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride()) if size > 1] if tensor.numel() else []


class Margins:
    """Tensors inside memory full of NaN: what lies around them, or between their elements, is not theirs."""

    def __init__(self):
        self.guards = []

    def place(self, tensor, margin=67):  # odd: no alignment comes by luck
        """The same values and strides, `margin` elements after the begin of such memory."""
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


def error(result, truth):
    """Largest absolute difference; NaN and infinities must be the same ones."""
    result, truth = result.detach().double(), truth.detach().double()
    special = ~torch.isfinite(truth)
    assert torch.equal(torch.isnan(result), torch.isnan(truth)), "NaN in different places"
    assert torch.equal(result[special].nan_to_num(), truth[special].nan_to_num()), "infinities in different places"
    return (result - truth)[~special].abs().max().item() if (~special).any() else 0.0


def budget(eager, truth, arithmetic=None):
    """arithmetic: the dtype that is computed in, where the result's own is wider than fp32 and that is not."""
    storage = torch.finfo(eager.dtype).eps
    arithmetic = min(torch.finfo(arithmetic or eager.dtype).eps, torch.finfo(torch.float32).eps)
    finite = truth[torch.isfinite(truth)].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    return max(RATIO * error(eager, truth), (STORAGE_UNITS * storage + ARITHMETIC_UNITS * arithmetic) * largest)


class OverBudget(AssertionError):
    """A fault, or the luck of a few roundings, which other values do not have again."""


def close(result, eager, truth, what="result", arithmetic=None):
    """result is eager's in shape, dtype, device, and as near to the truth as the budget says."""
    assert result.shape == eager.shape and result.dtype == eager.dtype and result.device == eager.device, what
    found, allowed = error(result, truth), budget(eager, truth, arithmetic)
    if not found <= allowed:
        raise OverBudget(f"{what}: error {found:.3g}, allowed {allowed:.3g}, eager {error(eager, truth):.3g}")


def agree(function, row, arguments, same_layout=True):
    """atrous.<function> of these arguments is what eager gives; returns ours."""
    eager = globals()[function](**arguments)
    result = getattr(atrous, function)(**arguments, backend=row)
    close(result, eager, globals()[function](**wide(arguments)))
    assert not same_layout or layout(result) == layout(eager), f"strides {result.stride()}, eager {eager.stride()}"
    return result


def refuse(ours, eager, named):
    """Where eager raises, ours raises the same type, and its message names the argument (a regex)."""
    with pytest.raises(Exception) as theirs:
        eager()
    with pytest.raises(theirs.type) as error:
        ours()
    assert re.search(rf"\b({named})\b", str(error.value)), f"the message does not name {named}: {error.value}"


def agree_or_refuse(ours, eager, named, truth=None, arithmetic=None):
    """For what eager does and no network needs: ours gives the same, or says which argument it does not take."""
    expected = eager()
    try:
        result = ours()
    except REFUSALS as error:
        assert re.search(rf"\b({named})\b", str(error)), f"the message does not name {named}: {error}"
        return
    if truth is not None:
        return close(result, expected, truth, arithmetic=arithmetic)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
