"""Transforms, tracers and tensor subclasses: a layer gives what its plain composition gives, called the same way."""

from __future__ import annotations

import copy
import re
from functools import partial

import oracle
import pytest
import torch
from oracle import make_plain, ours_of
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.testing._internal.two_tensor import TwoTensor

import atrous
from atrous import functional
from atrous.core.call_args import BatchNormArgs, PostOpArgs
from atrous.core.sync_stats import Group
from atrous.nn import AddAct, BNAct2d, ConvBNAct2d, FrozenConv2d

SLOPES = {
    "relu": "relu", "number": 0.3, "negative": -0.5, "identity": 1.0, "random": (0.1, 0.4),
    "shared": torch.tensor([0.2]), "scalar": torch.tensor(0.2), "channels": torch.tensor([0.1, 0.2, 0.3]),
}  # fmt: skip
NORMS = ("none", "eval", "training")
PLACES = (None, "before", "after")


def vector(low=0.5, size=3):
    return torch.rand(size, dtype=torch.float64) + low


def layers(slope, norm, seed=None):
    """(fused, plain, tensors): every function that such a layer has, as a function of the tensors that it learns."""
    slope = SLOPES[slope]
    draws = {"slope": slope.double()} if isinstance(slope, Tensor) else {}
    norms = {"bn_weight": vector(), "bn_bias": vector()} if norm != "none" else {}
    fixed = {} if draws else {"slope": slope}
    fixed |= {"running_mean": vector(), "running_var": vector()} if norm == "eval" else {}
    fixed |= {"training": norm == "training"}
    x, w, b = torch.randn(2, 2, 4, 3), torch.randn(3, 2, 3, 3) * 0.3, torch.randn(3)
    x, w, b, r, z = (t.double() for t in (x, w, b, torch.randn(2, 3, 4, 3), torch.randn(2, 3, 4, 3)))
    for place in PLACES:
        tensors = {"input": x, "weight": w, "bias": b} | norms | draws | ({"residual": r} if place else {})
        yield pair("conv_bn_act", tensors, fixed | {"padding": 1, "residual_after_act": place == "after"})
        if norms:
            tensors = {"input": z, "weight": norms["bn_weight"], "bias": norms["bn_bias"]} | draws
            options = {"running_mean": None, "running_var": None} | fixed | {"residual_after_act": place == "after"}
            yield pair("bn_act", tensors | ({"residual": r} if place else {}), options)
    if not norms:
        for dropout in (0.0, 0.3):
            options = {**fixed, "dropout": dropout, "training": True}
            yield pair("add_act", {"input": z, "other": r} | draws, options)


def pair(name, tensors, options):
    names = list(tensors)

    def run(function, *values):
        torch.manual_seed(1)
        return function(**dict(zip(names, values)), **options)

    ours, plain = (partial(run, getattr(module, name)) for module in (atrous, oracle))
    return ours, plain, [t.detach().clone() for t in tensors.values()]


def tangents(values):
    return tuple(torch.linspace(-1, 1, v.numel(), dtype=v.dtype).reshape(v.shape) for v in values)


def weighted(f):
    return lambda *v: f(*v).square().sum()


def dual(f, values, gradients=True):
    with forward_ad.dual_level(), torch.set_grad_enabled(gradients):
        y = f(*(forward_ad.make_dual(v, t) for v, t in zip(values, tangents(values))))
        return tuple(forward_ad.unpack_dual(y))


def vjp(f, values):
    y, pull = torch.func.vjp(f, *values)
    return pull(y)


def batched(f, values):
    leaves = [v.clone().requires_grad_() for v in values]
    y = f(*leaves)
    directions = torch.stack([torch.ones_like(y), torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)])
    return torch.autograd.grad(y, leaves, directions, is_grads_batched=True)


def vmapped_backward(f, values):
    """vmap over the backward alone: the forward ran before."""
    leaves = [v.clone().requires_grad_() for v in values]
    y = f(*leaves)
    directions = torch.stack([torch.ones_like(y), 2 * torch.ones_like(y)])
    return torch.vmap(lambda v: torch.autograd.grad(y, leaves, v, retain_graph=True))(directions)


TRANSFORMS = {
    "forward mode": dual,
    "forward mode without gradients": partial(dual, gradients=False),
    "grad": lambda f, v: torch.func.grad(weighted(f), tuple(range(len(v))))(*v),
    "vjp": vjp,
    "jvp": lambda f, v: torch.func.jvp(f, tuple(v), tangents(v)),
    "vmap": lambda f, v: torch.vmap(f, randomness="same")(*(torch.stack([t, 2 * t]) for t in v)),
    "vmap over input": lambda f, v: torch.vmap(f, (0, *(None,) * (len(v) - 1)), randomness="same")(
        torch.stack([v[0], -v[0]]), *v[1:]
    ),
    "jacrev": lambda f, v: torch.func.jacrev(f)(*v),
    "jacfwd": lambda f, v: torch.func.jacfwd(f, randomness="same")(*v),
    "hessian": lambda f, v: torch.func.jacfwd(torch.func.jacrev(weighted(f), 0), randomness="same")(*v),
    "functional.jacobian": lambda f, v: jacobian(f, tuple(v), vectorize=True),
    "batched gradients": batched,
    "vmap over the backward": vmapped_backward,
}
OWN_DRAWS = ("functional.jacobian", "batched gradients", "vmap over the backward")  # the forward runs our kernels


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functions(transform, slope, norm):
    for ours, plain, values in layers(slope, norm):
        drawn = slope == "random" or ours.args[0] is atrous.add_act
        if transform in OWN_DRAWS and drawn:
            continue
        try:
            expected = TRANSFORMS[transform](plain, values)
        except RuntimeError as error:  # torch does not batch rrelu
            with pytest.raises(RuntimeError, match=re.escape(str(error))):
                TRANSFORMS[transform](ours, values)
            continue
        torch.testing.assert_close(TRANSFORMS[transform](ours, values), expected, rtol=1e-9, atol=1e-9)


def test_statistics_of_several_processes_are_refused():
    norm, post_op = BatchNormArgs(training=True, group=Group("group", 2)), PostOpArgs("relu", None, False)
    with pytest.raises(RuntimeError, match="bn: expected statistics of one process .* nn.SyncBatchNorm over 2"):
        torch.func.jvp(lambda x: functional.normalize(x, norm, post_op), *[(torch.ones(2, 3, 4, 4),)] * 2)


class Functions(nn.Module):
    """Each function once, with a parameter as its slope."""

    def __init__(self, functions):
        super().__init__()
        self.weight, self.slope = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.rand(6))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)
        self.functions = functions

    def forward(self, x, r):
        y = self.functions.conv_bn_act(x, self.weight, slope=self.slope, residual=r, padding=1)
        y = self.functions.bn_act(y, self.mean, self.var, slope=(0.1, 0.3), residual=r, residual_after_act=True)
        return self.functions.add_act(y, r, slope="relu", dropout=0.1, training=True)


@pytest.mark.parametrize("tracer", ["fx", "jit"])
def test_traced_functions(tracer):
    arguments, results = (torch.randn(2, 4, 5, 5), torch.randn(2, 6, 5, 5)), []
    for functions in (atrous, oracle):
        torch.manual_seed(2)
        module = Functions(functions)
        if functions is atrous and tracer == "fx":
            module = torch.fx.symbolic_trace(module)
            assert "atrous" not in str(module.graph)
        elif functions is atrous:
            module = torch.jit.trace(module, arguments, check_trace=False)
            assert "atrous::" not in str(module.inlined_graph)
        torch.manual_seed(3)
        results.append(module(*arguments))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("training", [False, True])
def test_an_ensemble(training):
    """vmap over the stacked parameters and buffers of three layers."""
    layers = [ours_of(make_plain(nn.PReLU(6)), "auto").double().train(training) for _ in range(3)]
    x = torch.randn(2, 4, 5, 4).double()
    parameters, buffers = torch.func.stack_module_state(layers)
    one = copy.deepcopy(layers[0]).to("meta")
    y = torch.vmap(lambda p, b: torch.func.functional_call(one, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([layer(x) for layer in layers]))
    expected = torch.stack([layer.bn.running_var for layer in layers])
    torch.testing.assert_close(buffers["bn.running_var"], expected)


MODULES = {
    "ConvBNAct2d": lambda: ours_of(make_plain(nn.PReLU(6)), "auto"),
    "without BatchNorm": lambda: ours_of(make_plain(nn.LeakyReLU(0.2), bn=False), "auto"),
    "residual behind": lambda: ours_of(make_plain(nn.RReLU(), residual_after_act=True), "auto"),
    "cumulative average": lambda: ours_of(make_plain(nn.ReLU(), nn.BatchNorm2d(6, momentum=None)), "auto"),
    "own statistics": lambda: ours_of(make_plain(nn.ReLU(), nn.BatchNorm2d(6, track_running_stats=False)), "auto"),
    "padding mode": lambda: ours_of(make_plain(nn.ReLU(), padding_mode="reflect"), "auto"),
    "BNAct2d": lambda: BNAct2d(nn.BatchNorm2d(6), nn.PReLU(6)),
    "AddAct": lambda: AddAct(nn.PReLU(6), dropout=0.25),
    "frozen": lambda: ConvBNAct2d(FrozenConv2d(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)), None, nn.PReLU(6)),
}


class PlainModule(nn.Module):
    """The children of a fused module, called one after another; their state has the same names."""

    def __init__(self, fused):
        super().__init__()
        self.__dict__.update(copy.deepcopy(fused).__dict__)

    def forward(self, input, residual):
        conv, bn, act, after = (getattr(self, k, None) for k in ("conv", "bn", "act", "residual_after_act"))
        if isinstance(conv, FrozenConv2d):
            conv = partial(oracle.conv_bn_act, weight=conv.weight, bias=conv.bias, padding=1)
        layers = [layer for layer in (conv, bn) if layer is not None]
        for layer in layers:
            input = layer(input)
        y = act(input if after else input + residual)
        y = y + residual if after else y
        return nn.functional.dropout(y, getattr(self, "dropout", 0.0), self.training)


def modules(name, training):
    """The fused module, its plain one, and their arguments, in fp64."""
    torch.manual_seed(3)
    fused = MODULES[name]().double().train(training)
    x, r = torch.randn(2, 4, 5, 4).double(), torch.randn(2, 6, 5, 4).double()
    return fused, PlainModule(fused), (r.flip(2) if name in ("BNAct2d", "AddAct") else x, r)


def same_results(name, training, run):
    """run(module, *arguments) of both agree, and leave the same state; each draws from the same seed."""
    fused, plain, arguments = modules(name, training)
    results = []
    for module in (plain, fused):
        torch.manual_seed(4)
        try:
            results.append(run(module, *arguments))
        except RuntimeError as error:  # running statistics that are not an argument of the transformed function
            assert "in-place" in str(error)
            results.append(torch.tensor(torch.inf))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-9)


def of_parameters(module, x, r):
    """The gradients of the parameters and the input, and the buffers that a step would leave."""

    def loss(parameters, x, buffers):
        y = torch.func.functional_call(module, parameters | buffers, (x, r))
        return y.square().sum(), buffers

    buffers = {name: value.clone() for name, value in module.named_buffers()}
    return torch.func.grad(loss, (0, 1), has_aux=True)(dict(module.named_parameters()), x, buffers)


class Doubled(Tensor):
    """A subclass with its own dispatch: every result is twice what torch gives."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        result = super().__torch_function__(function, types, arguments, named or {})
        return result * 2 if function is nn.functional.conv2d or function is torch.add else result


def traced_by_fx(module, x, r):
    graph = torch.fx.symbolic_trace(module)
    assert not any("atrous" in str(node.target) for node in graph.graph.nodes)
    return graph(x, r)


def traced_by_jit(module, x, r):
    """Two calls: the tracer's, and that of the traced graph."""
    traced = torch.jit.trace(module, (x, r), check_trace=False)
    assert "atrous::" not in str(traced.inlined_graph)
    torch.manual_seed(5)
    return traced(x, r)


def compiled(module, x, r):
    """A transform inside a compiled function, where torch compiles that of the plain module."""
    if module.training:
        return x
    torch._dynamo.reset()
    gradient = torch.func.grad(lambda x: module(x, r).square().sum())
    return torch.compile(gradient, fullgraph=True, backend="aot_eager")(x)


RUNS = {
    "functional_call": of_parameters,
    "forward mode": lambda module, x, r: dual(lambda x: module(x, r), [x]),
    "jvp": lambda module, x, r: torch.func.jvp(lambda x: module(x, r), (x,), (x,)),
    "jacrev": lambda module, x, r: torch.func.jacrev(lambda x: module(x, r).sum(0))(x),
    "fx": traced_by_fx,
    "jit": traced_by_jit,
    "compiled grad": compiled,
    "wrapper": lambda module, x, r: module(TwoTensor(x, x + 1), r).b,
    "subclass": lambda module, x, r: module(x.as_subclass(Doubled), r).as_subclass(Tensor),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("run", RUNS)
def test_modules(run, name, training):
    same_results(name, training, RUNS[run])
