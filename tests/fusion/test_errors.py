"""Errors of fuse(): each names its argument, what was expected and what came, and leaves the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from outcomes import equal_models
from pairs import Pair, image
from torch import nn

import atrous


@pytest.fixture
def model():
    return equal_models(Pair)[0]


@pytest.mark.parametrize(
    "wrong", [None, lambda x: x, "resnet34", Pair, 3], ids=["None", "function", "str", "class", "int"]
)
def test_no_module(wrong):
    with pytest.raises(TypeError, match="model: expected .*got"):
        atrous.fuse(wrong)


@pytest.mark.filterwarnings("ignore")
def test_modules_that_have_no_forward_of_their_own(model):
    """Scripted, traced and compiled: as the model and as a child of it."""
    x = image()
    wrong = {
        "ScriptModule|TracedModule|TopLevel": torch.jit.trace(model, x),
        "ScriptModule": torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())),
        "OptimizedModule": torch.compile(model),
    }
    for name, module in wrong.items():
        with pytest.raises(TypeError, match=rf"model: expected .*({name})"):
            atrous.fuse(module)
        with pytest.raises(TypeError, match=rf"model\.1: expected .*({name})"):
            atrous.fuse(nn.Sequential(nn.ReLU(), module))


def test_lazy_and_frozen(model):
    with pytest.raises(ValueError, match=r"model\.1: expected .*(lazy|uninitialized).*LazyConv2d"):
        atrous.fuse(nn.Sequential(nn.ReLU(), nn.LazyConv2d(3, 1)))
    frozen = atrous.fuse(model, freeze=True)
    for options in ({}, {"freeze": True}):
        with pytest.raises((TypeError, ValueError), match="model: expected .*frozen"):
            atrous.fuse(frozen, **options)


@pytest.mark.parametrize("options, error, text", [
    (dict(backend="cudnn"), ValueError, "backend: expected .*'cudnn'"),
    (dict(backend=3), (TypeError, ValueError), "backend: expected"),
    (dict(then="onnx"), ValueError, "then: expected .*'onnx'"),
    (dict(freeze="yes"), (TypeError, ValueError), "freeze: expected .*'?yes'?"),
    (dict(recompute=2), (TypeError, ValueError), "recompute: expected .*2"),
    (dict(dynamic="auto"), (TypeError, ValueError), "dynamic: expected .*'?auto'?"),
])  # fmt: skip
def test_options(model, options, error, text):
    with pytest.raises(error, match=text):
        atrous.fuse(model, **options)


def test_an_unknown_option(model):
    with pytest.raises(TypeError, match="fast"):
        atrous.fuse(model, fast=True)
    with pytest.raises(TypeError):
        atrous.fuse()


@pytest.mark.parametrize("inputs, text", [
    (image(channels=3), "channels|RuntimeError"),
    ((image(), image()), "argument"),
    ("image", "str|TypeError"),
    ((), "argument"),
    (image(dtype=torch.float32), "RuntimeError|Float|dtype"),
])  # fmt: skip
def test_example_inputs(model, inputs, text):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"example_inputs: .*({text})"):
        atrous.fuse(model, inputs)
    assert not hasattr(model, "fusion_report") and type(model) is Pair
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    fused = atrous.fuse(model, image())  # a tensor, or a tuple of arguments
    assert fused.fusion_report.counts == atrous.fuse(model, (image(),)).fusion_report.counts == (2, 2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
def test_example_inputs_leave_everything_as_it_was(freeze, training):
    """Buffers, counters, random states, modes and gradients."""

    class Counting(Pair):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * torch.rand_like(x)

    model = equal_models(Counting, training)[0]
    x = image().requires_grad_()
    before, state, version = copy.deepcopy(model.state_dict()), torch.get_rng_state(), x._version
    fused = atrous.fuse(model, (x,), freeze=freeze)
    assert fused.training == (training and not freeze) and model.training == training == model.bn1.training
    assert fused.fusion_report.counts == (2, 2)
    assert torch.equal(torch.get_rng_state(), state) and x._version == version and x.grad is None
    assert all(p.grad is None for p in model.parameters())
    for name, value in [*model.state_dict().items(), *fused.state_dict().items()]:
        assert torch.equal(value, before[name]), name


def test_no_convolutions():
    """Nothing to fuse is no error."""
    fused = atrous.fuse(nn.Linear(2, 2))
    fused(torch.randn(3, 2))
    assert fused.fusion_report.counts == (0, 0) and not fused.fusion_report.sites


def test_dynamo_is_off(model):
    """Where nothing can be compiled the model runs as it is, and the report and one warning say so."""
    fused, x = atrous.fuse(model), image()
    with torch._dynamo.config.patch(disable=True), torch.no_grad(), pytest.warns(match="plain"):
        y = fused(x)
    torch.testing.assert_close(y, model(x), rtol=1e-9, atol=1e-9)
    assert fused.fusion_report.plain_calls and fused.fusion_report.counts[0] == 0
    with torch.no_grad():
        fused(x)
    assert fused.fusion_report.counts == (2, 2)
