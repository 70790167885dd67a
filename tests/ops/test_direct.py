"""The short way of a call gives what the long way gives: the same bits and strides, or the same error."""

from __future__ import annotations

import contextlib
from functools import partial
from unittest import mock

import pytest
import torch
from torch import nn

import atrous
from atrous import ops
from atrous.core.torch_compat import cpu_multiplies
from atrous.ops import direct

pytestmark = pytest.mark.skipif(not ops.library_loaded, reason="libatrous.so is not loaded")
NHWC = torch.channels_last


def operands() -> dict:
    x, residual = torch.randn(2, 2, 6, 5, 7).unbind()
    mean, gamma, beta, slope = torch.randn(4, 6)
    return dict(
        x=x, r=residual, w=torch.randn(6, 6, 3, 3), mean=mean, var=mean.abs() + 0.5, gamma=gamma, beta=beta, slope=slope
    )


def calls(o: dict) -> dict:
    """Three calls of these operands: with a convolution, of a BatchNorm, of an addition."""
    norm = o["mean"], o["var"], o["gamma"], o["beta"]
    options = dict(slope=o["slope"], residual=o["r"], residual_after_act=o.get("after", False), eps=o.get("eps", 1e-5))
    options |= dict(training=o.get("training", False), momentum=o.get("momentum", 0.1))
    geometry = dict(stride=o.get("stride", 1), padding=o.get("padding", 1), groups=o.get("groups", 1))
    backend = dict(backend=o.get("backend", "auto"))
    return {
        "conv_bn_act": lambda: atrous.conv_bn_act(
            o["x"], o["w"], o.get("bias"), *norm, **options, **geometry, **backend
        ),
        "bn_act": lambda: atrous.bn_act(o["x"], *norm, **options, **backend),
        "add_act": lambda: atrous.add_act(o["x"], o["r"], slope=o["slope"], dropout=o.get("dropout", 0.0), **backend),
    }


def outcome(call) -> tuple:
    try:
        y = call()
        return tuple(y.shape), y.stride(), y.dtype, y.device, y.requires_grad, y.detach().flatten().tolist()
    except Exception as error:
        return type(error), str(error)


def halves(*names: str) -> dict:
    return {name: value.bfloat16() for name, value in operands().items() if name in names}


GOOD = {
    "as it is": {},
    "relu": dict(slope="relu"),
    "a number": dict(slope=0.25),
    "an int": dict(slope=1),
    "a shared slope": dict(slope=torch.rand(1)),
    "after": dict(after=True),
    "eps": dict(eps=1e-3),
    "no affine": dict(gamma=None, beta=None),
    "no batch norm": dict(mean=None, var=None, gamma=None, beta=None),
    "channels_last": dict(
        x=torch.randn(2, 6, 5, 7).to(memory_format=NHWC), r=torch.randn(2, 6, 5, 7).to(memory_format=NHWC)
    ),
    "weight alone channels_last": dict(w=torch.randn(6, 6, 3, 3).to(memory_format=NHWC)),
    "geometry": dict(stride=(2, 1), padding=(0, 2), groups=2, w=torch.randn(6, 3, 3, 3), r=None),
    "same": dict(padding="same", w=torch.randn(6, 6, 2, 4)),
    "library": dict(backend="library"),
    "native": dict(backend="native"),
    "parameters": dict(w=nn.Parameter(torch.randn(6, 6, 3, 3)), gamma=nn.Parameter(torch.randn(6))),
    "one pixel": dict(x=torch.randn(2, 6, 1, 1), r=torch.randn(2, 6, 1, 1)),
    "a large map": dict(x=torch.randn(2, 6, 80, 80), r=torch.randn(2, 6, 80, 80)),
    "a slice": dict(x=torch.randn(2, 6, 5, 14)[..., ::2]),
    "bfloat16": halves(*operands()),
    "bfloat16 and vectors in fp32": halves("x", "r", "w", "slope"),
    "a residual that broadcasts": dict(r=torch.randn(1, 6, 1, 1)),
    "a residual in another layout": dict(r=torch.randn(2, 6, 5, 7).to(memory_format=NHWC)),
}
BAD = {
    "another name": dict(slope="number"),
    "a bool": dict(slope=True),
    "slopes": dict(slope=torch.rand(5)),
    "slopes in 2-D": dict(slope=torch.rand(6, 1)),
    "negative eps": dict(eps=-1.0),
    "eps as text": dict(eps="1"),
    "half vectors": dict(gamma=torch.randn(6).half()),
    "bfloat16 and a vector in fp64": halves("x", "r", "w", "slope") | dict(mean=torch.randn(6).double()),
    "bfloat16 and a slope in fp32": halves("x", "r", "w"),
    "wide slope": dict(slope=torch.rand(6).double()),
    "meta": dict(beta=torch.empty(6, device="meta")),
    "a meta slope": dict(slope=torch.empty(6, device="meta")),
    "var is missing": dict(var=None),
    "mean is missing": dict(mean=None),
    "only gamma": dict(mean=None, var=None, beta=None),
    "short vector": dict(mean=torch.randn(5)),
    "residual": dict(r=torch.randn(2, 6, 5, 6)),
    "3-D": dict(x=torch.randn(6, 5, 7), r=torch.randn(6, 5, 7)),
    "ints": dict(x=torch.ones(2, 6, 5, 7, dtype=torch.int64)),
    "sparse": dict(x=torch.ones(2, 6, 5, 7).to_sparse()),
    "a number for a tensor": dict(mean=0.5),
    "stride": dict(stride=0),
    "padding": dict(padding=-1),
    "groups": dict(groups=4),
    "a float for groups": dict(groups=1.0),
    "no pixels": dict(x=torch.randn(2, 6, 0, 0), r=None),
    "no backend": dict(backend="none"),
    "triton": dict(backend="triton"),
    "dropout": dict(dropout=1.5),
}


@pytest.mark.parametrize("changes", [*GOOD.values(), *BAD.values()], ids=[*GOOD, *BAD])
def test_both_ways_agree(changes):
    with torch.no_grad():
        for name, call in calls(operands() | changes).items():
            short = outcome(call)
            with mock.patch.object(direct, "_takes", lambda *arguments: False):
                assert short == outcome(call), name


def with_gradients(call, operands: dict, create_graph: bool = False) -> tuple:
    """The outcome of a call, then the gradients of its operands and what it wrote into the running statistics."""
    leaves = [v for v in operands.values() if isinstance(v, torch.Tensor) and v.requires_grad]
    try:
        y = call()
        assert y.requires_grad
        grad = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape).to(y.dtype)
        grads = torch.autograd.grad(y, leaves, grad, allow_unused=True, create_graph=create_graph)
        if create_graph:
            square = sum(g.double().square().sum() for g in grads if g is not None)
            grads += torch.autograd.grad(square, leaves, allow_unused=True)
    except Exception as error:
        return type(error), str(error)
    written = [
        operands[name].flatten().tolist() for name in ("mean", "var") if isinstance(operands[name], torch.Tensor)
    ]
    values = [None if g is None else (tuple(g.shape), g.stride(), g.dtype, g.flatten().tolist()) for g in grads]
    return tuple(y.shape), y.stride(), y.detach().flatten().tolist(), values, written


TRAINING = {
    "": {},
    "eval": dict(training=False),
    "one image": dict(x=torch.randn(1, 6, 5, 7), r=torch.randn(1, 6, 5, 7)),
    "one value a channel": dict(x=torch.randn(1, 6, 1, 1), r=torch.randn(1, 6, 1, 1)),
    "bias": dict(bias=torch.randn(6)),
    "momentum": dict(momentum=0.7),
    "an int as momentum": dict(momentum=1),
    "momentum as text": dict(momentum="1"),
    "fp64": dict(dtype=torch.float64),
    "relu without a sum": dict(slope="relu", r=None),
    "large": dict(x=torch.randn(2, 6, 20, 20), r=torch.randn(2, 6, 20, 20)),
}
FROZEN = ("x", "w", "gamma", "slope")


@pytest.mark.parametrize(
    "frozen", [(), *((name,) for name in FROZEN), FROZEN], ids=lambda names: "-".join(names) or "all"
)
@pytest.mark.parametrize("name", [*GOOD, *TRAINING, *BAD])
def test_both_ways_have_the_same_gradients(name, frozen):
    """frozen: the operands that need no gradient."""
    if frozen and name in BAD:
        pytest.skip("an error does not depend on which gradients are needed")
    changes = (GOOD | TRAINING | BAD)[name]
    drawn = operands() | dict(training=True) | changes

    def fresh() -> dict:
        """The same values for each call, since it writes the running statistics."""
        o = {
            k: v.detach().clone() if isinstance(v, torch.Tensor) and v.layout is torch.strided else v
            for k, v in drawn.items()
        }
        for name, value in o.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout is torch.strided:
                o[name] = value = value.to(o["dtype"]) if "dtype" in o else value
                value.requires_grad_(name not in (*frozen, "mean", "var"))
        return o

    for name in calls(drawn):
        for create_graph in (False, True):
            o = fresh()
            short = with_gradients(calls(o)[name], o, create_graph)
            o = fresh()
            with mock.patch.object(direct, "_takes", lambda *arguments: False):
                assert short == with_gradients(calls(o)[name], o, create_graph), (name, create_graph)


@pytest.mark.parametrize(
    "name", [name for name in GOOD if not name.startswith(("a slice", "a large", "a residual", "same", "weight alone"))]
)
def test_the_short_way_is_taken(name):
    """No check of the long way runs."""
    if "bfloat16" in name and not cpu_multiplies(torch.bfloat16):
        pytest.skip("this CPU emulates bfloat16, which a backend convolves in fp32")
    forbidden = mock.Mock(side_effect=AssertionError("the long way"))
    with (
        torch.no_grad(),
        mock.patch("atrous.functional.checks", forbidden),
        mock.patch("atrous.functional.selection", forbidden),
    ):
        o = operands() | GOOD[name]
        taken = calls(o)
        (taken["conv_bn_act"] if o["r"] is not None or "geometry" in name else taken["add_act"])()


def test_other_calls_take_the_long_way():
    o, called = operands(), []
    with mock.patch.object(direct, "_epilogue", lambda *arguments: called.append(arguments)):
        calls(o | {"x": torch.randn(2, 6, 100, 100).requires_grad_(), "r": None})["bn_act"]()
        with torch.no_grad(), torch.autocast("cpu"):
            calls(o)["bn_act"]()
        with torch.no_grad(), contextlib.suppress(RuntimeError):
            torch.func.vmap(lambda x: atrous.add_act(x, o["r"], slope=0.5))(o["x"][None])
    assert not called


@pytest.mark.parametrize("training", [False, True])
def test_modules(training):
    conv, bn, act = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU(6)
    x, r = torch.randn(2, 2, 6, 5, 7).unbind()
    for module in (atrous.nn.ConvBNAct2d(conv, bn, act), atrous.nn.BNAct2d(bn, act), atrous.nn.AddAct(act)):
        module.train(training)
        state = {name: value.clone() for name, value in module.state_dict().items()}
        with torch.no_grad():
            short = outcome(partial(module, x, r))
            module.load_state_dict(state)
            with mock.patch.object(direct, "_takes", lambda *arguments: False):
                assert short == outcome(partial(module, x, r))
