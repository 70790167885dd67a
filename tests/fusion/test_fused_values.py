"""Values of fused models in fp32 and below on each backend, by the error budget; the package's own ResNet34."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
from oracle import refuse
from outcomes import randomize
from torch import nn
from torch.nn.functional import leaky_relu, relu
from zoo import ZOO
from zoo.entry import cb, cbr

import atrous
from atrous import models
from atrous.core.graph_compat import trace
from atrous.fusion.sites import call
from atrous.testing import assert_tensor

LOW = [pytest.param(dtype, marks=pytest.mark.gate) for dtype in (torch.float64, torch.float16)]
ACTS = {
    "relu": nn.ReLU, "inplace relu": lambda: nn.ReLU(inplace=True), "leaky": lambda: nn.LeakyReLU(0.2),
    "prelu": lambda: nn.PReLU(8), "shared prelu": nn.PReLU, "rrelu": nn.RReLU,
}  # fmt: skip


class Net(nn.Module):
    """A stem of 7x7, blocks of dilation 1 and 2 with a padding by name, and a projection."""

    def __init__(self, act):
        super().__init__()
        self.stem = cbr(3, 8, 7, act(), stride=2, bias=True)
        self.first = nn.ModuleList([cbr(8, 8, act=act()), cbr(8, 8, act=act(), dilation=2)])
        self.second = nn.ModuleList([cb(8, 8, padding="same", dilation=3, bias=True) for _ in "12"])
        self.acts, self.down = nn.ModuleList([act(), act()]), cbr(8, 5, 1, stride=2)

    def forward(self, x):
        x = self.stem(x)
        for first, second, act in zip(self.first, self.second, self.acts):
            x = act(second(first(x)) + x)
        return self.down(x).mean((2, 3))


class Calls(nn.Module):
    """A function of x and of three layers of the same shapes, without activations."""

    def __init__(self, run):
        super().__init__()
        self.run, self.layers = run, nn.ModuleList(cb() for _ in "123")

    def forward(self, x):
        return self.run(x, *self.layers)


def net(act="prelu"):
    """In eval, with statistics of a batch."""
    model = randomize(Net(ACTS[act]))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4, 3, 29, 31))
    return model.eval()


def within_budget(fused, plain, x):
    expected = plain(x)
    assert expected.abs().max() > 0
    assert_tensor(fused(x), expected, oracle.wide(plain)(x.double()))


@pytest.mark.parametrize("freeze", [False, True], ids=["fused", "frozen"])
@pytest.mark.parametrize(
    "act", [pytest.param(act, marks=[pytest.mark.gate, pytest.mark.nightly] * (act != "prelu")) for act in ACTS]
)
@torch.no_grad()
def test_values(backend, act, freeze):
    plain, x = net(act), torch.randn(2, 3, 29, 31)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    fused = atrous.fuse(copy.deepcopy(plain), (x,), backend=backend, freeze=freeze)
    for input in (x, x[:0], x[:1, :, :13, :9], x.contiguous(memory_format=torch.channels_last)):
        within_budget(fused, plain, input) if len(input) else torch.testing.assert_close(fused(input), plain(input))
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())
    assert fused.fusion_report.counts == (6, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, *LOW], ids=str)
@pytest.mark.parametrize("freeze", [False, True], ids=["fused", "frozen"])
@torch.no_grad()
def test_dtypes(backend, dtype, freeze):
    plain, x = net().to(dtype), torch.randn(2, 3, 29, 31).to(dtype)
    within_budget(atrous.fuse(copy.deepcopy(plain), backend=backend, freeze=freeze), plain, x)


@pytest.mark.parametrize("act", ["prelu", pytest.param("inplace relu", marks=pytest.mark.gate)])
def test_training_steps(backend, act):
    plain, x = net(act).train(), torch.randn(4, 3, 29, 31)
    fused = atrous.fuse(copy.deepcopy(plain), backend=backend)
    for model in (plain, fused):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for (name, value), expected in zip(fused.state_dict().items(), plain.state_dict().values()):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3, msg=lambda text: f"{name}: {text}")  # noqa: B023


WRONG = {
    "3-D": lambda: torch.randn(3, 29, 31),
    "5-D": lambda: torch.randn(1, 2, 3, 29, 31),
    "channels": lambda: torch.randn(1, 4, 29, 31),
    "fp64": lambda: torch.randn(2, 3, 29, 31).double(),
    "None": lambda: None,
    "empty": lambda: torch.randn(1, 3, 0, 9),
}


@torch.no_grad()
def test_refused_as_eager_refuses(backend):
    """After a call that fits and before it, one copy refuses each of these with torch's type of error and its words."""
    plain = net()
    for fused in (atrous.fuse(copy.deepcopy(plain), backend=backend, freeze=freeze) for freeze in (False, True)):
        for _ in range(2):
            for input in (wrong() for wrong in WRONG.values()):
                refuse(lambda: fused(input), lambda: plain(input), "input|weight|channels|size|4D|Tensor|type")  # noqa: B023
            within_budget(fused, plain, torch.randn(2, 3, 29, 31))


def input_as_residual(x, f, g, h):
    y = relu(f(x) + x)
    return relu(g(y) + x) + relu(h(y) + y)


def like_residual(x, f, g, h):
    y = relu(f(x))
    return relu(h(relu(g(y))) + y)


def residual_after(x, f, g, h):
    y = relu(f(x) + x)
    return relu(h(relu(g(y)) + y) + y)


def under_autocast(x, f, g, h):
    with torch.autocast("cpu", torch.bfloat16):
        y = relu(f(x))
    return relu(h(relu(g(y.float()))))


# name -> what is called, and how many of its sites are traced: those that differ in more than their tensors
ALIKE = {
    "tensors alone": (lambda x, f, g, h: relu(h(relu(g(relu(f(x)))))), 1),
    "the input as residual": (input_as_residual, 2),
    "a residual and an input of like sites": (like_residual, 2),
    "a residual after the activation": (residual_after, 3),
    "slopes": (lambda x, f, g, h: leaky_relu(h(leaky_relu(g(leaky_relu(f(x), 0.1)), 0.2)), 0.1), 2),
    "strides of the input": (lambda x, f, g, h: relu(g(relu(f(x)))) + relu(h(x.transpose(2, 3))), 2),
    "autocast": (under_autocast, 2),
}


@pytest.mark.parametrize("freeze", [False, True], ids=["fused", "frozen"])
@pytest.mark.parametrize("name", ALIKE)
@torch.no_grad()
def test_sites_that_are_alike(name, freeze, monkeypatch):
    """Sites that differ in their tensors alone are traced once; others are not taken for each other."""
    traced = []
    monkeypatch.setattr(call, "trace", lambda *arguments: traced.append(trace(*arguments)) or traced[-1])
    plain = randomize(Calls(ALIKE[name][0])).eval()
    if name != "autocast":
        plain.double()
    x = torch.randn(2, 4, 9, 9, dtype=next(plain.parameters()).dtype)
    fused, tolerance = atrous.fuse(plain, freeze=freeze), 0.02 if name == "autocast" else 1e-9
    torch.testing.assert_close(fused(x), plain(x), rtol=tolerance, atol=tolerance)
    assert freeze or len(traced) == ALIKE[name][1]


@pytest.mark.parametrize("act", ["prelu", pytest.param("relu", marks=pytest.mark.gate)])
@torch.no_grad()
def test_resnet34(act):
    model = randomize(models.resnet34(act=act, num_classes=10)).eval()
    x = torch.randn(1, 3, 40, 40)
    expected = model(x)
    for freeze in (False, True):
        fused = atrous.fuse(model, freeze=freeze)
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        patterns = [layer.pattern for layer in fused.fusion_report.sites if layer.fused]
        assert fused.fusion_report.counts == (36, 36) and not fused.fusion_report.breaks
        counts = {pattern: patterns.count(pattern) for pattern in patterns}
        assert counts == {f"conv+bn+{act}": 17, f"conv+bn+add+{act}": 16, "conv+bn": 3}


@torch.no_grad()
def test_features_of_a_dilated_resnet():
    model = randomize(models.resnet34(output_stride=8, features_only=True)).eval()
    x = torch.randn(1, 3, 48, 48)
    for ours, theirs in zip(atrous.fuse(model)(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.gate
@pytest.mark.nightly
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_the_zoo_in_fp32(name):
    """In channels_last and NCHW, fused and frozen, where Winograd may take part."""
    entry = ZOO[name]
    torch.manual_seed(0)
    plain = randomize(entry.build()).eval()
    for freeze in (False, True):
        fused = atrous.fuse(copy.deepcopy(plain), freeze=freeze)
        for layout in (torch.contiguous_format, torch.channels_last):
            x = entry.inputs(layout).float()
            ours, theirs = ([*y.values()] if isinstance(y, dict) else y for y in (fused(x), plain(x)))
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_layouts_behind_maps_of_one_channel(training):
    """A BatchNorm gives a channels_last map of one channel, or of one pixel, the strides of NCHW: so are later ones."""
    for width, size in ((1, 4), (3, 1)):
        layers = nn.Conv2d(3, width, 1, bias=False), nn.BatchNorm2d(width), nn.Conv2d(width, 3, 3, padding=2)
        model = nn.Sequential(*layers).train(training)
        fused = atrous.fuse(copy.deepcopy(model))
        x = torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)
        x = x.as_strided(x.shape, (3 * size * size, 1, 3 * size, 3))
        y, plain = fused(x), model(x)
        torch.testing.assert_close(y, plain, rtol=1e-4, atol=1e-5)
        assert y.stride() == plain.stride() and plain.is_contiguous()
