"""Gradients and inputs of every layout: a layer's backward takes each incoming gradient that autograd may pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from atrous.nn import AddAct, BNAct2d, ConvBNAct2d
from atrous.testing import assert_tensor

CHANNELS, SIZE = 24, (2, 24, 16, 18)  # from 512 pixels on a convolution in training may be Winograd's


class BNAct(nn.Module):
    def __init__(self, bn, act):
        super().__init__()
        self.bn, self.act = bn, act

    def forward(self, x, r):
        return self.act(self.bn(x) + r)


class ConvBNAct(BNAct):
    def __init__(self, conv, bn, act, after=False):
        super().__init__(bn, act)
        self.conv, self.after = conv, after

    def forward(self, x, r):
        u = self.bn(self.conv(x))
        return self.act(u) + r if self.after else self.act(u + r)


def conv(kernel=3, **options):
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, **{"padding": kernel // 2, **options})


LAYERS = {  # the fused layer's children, and the residual's place
    "convolution": lambda: (conv(), nn.Identity(), nn.Identity()),
    "1x1 convolution": lambda: (conv(1), nn.Identity(), nn.Identity()),
    "relu": lambda: (conv(), nn.Identity(), nn.ReLU()),
    "residual behind": lambda: (conv(), nn.Identity(), nn.ReLU(), True),
    "slopes": lambda: (conv(), nn.Identity(), nn.PReLU(CHANNELS)),
    "batch statistics": lambda: (conv(), nn.BatchNorm2d(CHANNELS), nn.PReLU(CHANNELS)),
    "constant statistics": lambda: (conv(), nn.BatchNorm2d(CHANNELS).eval(), nn.ReLU()),
    "groups": lambda: (conv(groups=4), nn.BatchNorm2d(CHANNELS), nn.ReLU()),
    "bn_act": lambda: (nn.BatchNorm2d(CHANNELS), nn.LeakyReLU(0.1)),
    "add_act": lambda: (nn.Identity(), nn.ReLU()),
    "add": lambda: (nn.Identity(), nn.Identity()),
    "add_act with slopes": lambda: (nn.Identity(), nn.PReLU()),
}
GRADIENTS = {  # a scalar of y, by the layout of y's gradient
    "expanded": lambda y: y.mean(),
    "one row expanded": lambda y: (y.sum(2) * torch.linspace(-1, 1, y.shape[3]).to(y)).sum(),
    "one channel expanded": lambda y: y.sum(1).square().sum(),
    "nchw": lambda y: (y * ramp(y)).sum(),
    "nhwc": lambda y: (y * channels_last(ramp(y))).sum(),
    "sliced": lambda y: torch.cat([y, y], 1).square().sum(),
    "transposed": lambda y: (y.transpose(2, 3) * ramp(y.transpose(2, 3))).sum(),
}


def ramp(y):
    return torch.linspace(-1, 1, y.numel()).to(y.dtype).view(y.shape)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


INPUTS = {
    "nchw": lambda x: x,
    "nhwc": channels_last,
    "sliced nhwc": lambda x: channels_last(torch.cat([x, x], 1))[:, :CHANNELS],
    "cropped nhwc": lambda x: channels_last(nn.functional.pad(x, (1, 1, 1, 1)))[:, :, 1:-1, 1:-1],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:1].expand(SIZE),
}


def fused_and_plain(name):
    children = LAYERS[name]()
    plain = (BNAct if len(children) == 2 else ConvBNAct)(*children)
    bn = None if isinstance(plain.bn, nn.Identity) else plain.bn
    if len(children) > 2:
        return ConvBNAct2d(plain.conv, bn, plain.act, plain.after), copy.deepcopy(plain)
    fused = AddAct(plain.act) if bn is None else BNAct2d(bn, plain.act)
    return fused, copy.deepcopy(plain)


def step(layer, x, r, scalar):
    x, r = x.detach().requires_grad_(), r.detach().requires_grad_()
    y = layer(x, r)
    scalar(y).backward()
    return [y.detach(), x.grad, r.grad, *(p.grad for _, p in sorted(layer.named_parameters()))]


def check(backend, name, input, scalar):
    fused, plain = fused_and_plain(name)
    fused.backend = backend
    x, r = INPUTS[input](torch.randn(SIZE)), INPUTS[input](torch.randn(SIZE))
    exact = step(copy.deepcopy(plain).double(), x.double(), r.double(), GRADIENTS[scalar])
    ours, eager = (step(layer, x, r, GRADIENTS[scalar]) for layer in (fused, plain))
    for actual, expected, truth in zip(ours, eager, exact, strict=True):
        assert_tensor(actual, expected, truth, ratio=8, relative=1e-5)  # a wrong layout is wrong by far more


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients(backend, name, gradient):
    for input in ("nchw", "nhwc"):
        check(backend, name, input, gradient)


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_inputs(backend, name, input):
    check(backend, name, input, "expanded")


@pytest.mark.parametrize("name", ["bn_act", "add_act with slopes", "add"])
@pytest.mark.parametrize("input", ["nchw", "nhwc"])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_without_a_convolution(name, input, compiler):
    """Dynamo knows no strides of an input of the graph in the backward."""
    torch._dynamo.reset()
    fused, plain = fused_and_plain(name)
    compiled = torch.compile(fused, fullgraph=True, backend=compiler)
    compiled.named_parameters = fused.named_parameters
    x, r = (INPUTS[input](torch.randn(SIZE)) for _ in range(2))
    ours, eager = (step(layer, x, r, GRADIENTS["expanded"]) for layer in (compiled, plain))
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)


def test_compiled_dropout():
    torch._dynamo.reset()
    layer = torch.compile(AddAct(nn.PReLU(), dropout=0.5), fullgraph=True, backend="aot_eager")
    x, o = (torch.rand(2, 3, 4, 4).requires_grad_() for _ in range(2))
    y = layer(x, o)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, 2.0))
