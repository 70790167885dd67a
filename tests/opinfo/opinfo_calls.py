"""A sample of PyTorch's as a call of each entry point of ours, beside the same call in plain torch.

An entry point gets what changes nothing for each step that the sample leaves out: a depthwise convolution with weights
of 1, a BatchNorm with mean 0 and variance 1, a residual of -0.0.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import oracle
import torch
from opinfo_samples import CONVOLUTIONS, OPERATORS, PLACES, Sample
from torch import Tensor, nn

import atrous

Tensors = dict[str, Tensor]
FUNCTIONS = ("conv_bn_act", "bn_act", "add_act")
MODULES = {"ConvBNAct2d": "conv_bn_act", "BNAct2d": "bn_act", "AddAct": "add_act"}
ENTRIES = (*FUNCTIONS, *MODULES, "fuse")
FOUR_D = ("conv_bn_act", "bn_act", "ConvBNAct2d", "BNAct2d", "fuse")  # they get lifted samples too
EPS = 1e-30  # torch refuses 0; 1 + EPS is 1
# The arguments of conv_bn_act that are tensors of a child of ConvBNAct2d.
CHILD_TENSORS = {
    "weight": "conv.weight", "bias": "conv.bias", "running_mean": "bn.running_mean", "running_var": "bn.running_var",
    "bn_weight": "bn.weight", "bn_bias": "bn.bias", "slope": "act.weight",
}  # fmt: skip
RENAMED = {"conv_bn_act": {}, "bn_act": {"bn_weight": "weight", "bn_bias": "bias"}, "add_act": {"residual": "other"}}


class Call(NamedTuple):
    """The same computation by ours(tensors, backend) and by plain(tensors)."""

    ours: Callable[[Tensors, str], Tensor]
    plain: Callable[[Tensors], Tensor]
    tensors: Tensors
    arguments: dict[str, Any]  # those of conv_bn_act, of which the sample may leave some to a module
    values: int = 0  # seed of the gradients and tangents

    @property
    def needs(self) -> list[str]:
        return [name for name, value in self.tensors.items() if value.requires_grad]

    @property
    def slopes(self) -> tuple[float, float] | None:
        """The bounds of slopes that are drawn."""
        act = self.arguments.get("act")
        return (act.lower, act.upper) if act is not None and act.training else None

    @property
    def dropout(self) -> float:
        return self.arguments.get("dropout", 0.0) if self.arguments.get("dropout_training") else 0.0


class NotApplicable(Exception):
    """The entry point has no such step or argument."""


def call(sample: Sample, entry: str) -> Call:
    """The sample through this entry point. Raises NotApplicable if that lacks one of its steps."""
    if not isinstance(sample.arguments["input"], Tensor):
        raise NotApplicable("the input is a number")
    if entry == "fuse":
        return _fused(sample)
    arguments = _arguments(sample)
    if arguments.pop("alpha", 1) != 1:
        raise NotApplicable("no argument alpha")
    completed = _completed(MODULES.get(entry, entry), arguments, PLACES.get(sample.name))
    return _function(entry, completed) if entry in FUNCTIONS else _module(entry, completed, sample)


def _arguments(sample: Sample) -> dict[str, Any]:
    if sample.module is None:
        return OPERATORS[sample.name](**sample.arguments)
    if isinstance(bn := sample.module, nn.BatchNorm2d):
        return sample.arguments | {"training": bn.training or bn.running_mean is None, "eps": bn.eps}
    return dict(sample.arguments)


def _completed(function: str, arguments: dict[str, Any], place: str | None) -> dict[str, Any]:
    x, size = arguments["input"], arguments["input"].shape
    conv, norm = "weight" in arguments or place == "conv", "running_mean" in arguments or place == "bn"
    if function != "add_act" and "dropout" in arguments:
        raise NotApplicable("no dropout")
    if (function != "conv_bn_act" and conv) or (function == "add_act" and norm):
        raise NotApplicable("no convolution" if conv else "no BatchNorm")
    if function == "conv_bn_act" and not conv:
        channels = max(size[-3], 1) if len(size) > 2 else 1
        arguments = {"weight": x.new_ones(channels, 1, 1, 1), "groups": channels} | arguments
    if function == "bn_act" and not norm:
        channels = size[1] if len(size) > 1 else 1
        vectors = {"running_mean": x.new_zeros(channels), "running_var": x.new_ones(channels)}
        arguments = vectors | {"eps": EPS} | arguments
    if function == "add_act" and "residual" not in arguments:
        arguments = {"residual": torch.full_like(x, -0.0, requires_grad=False)} | arguments
    return arguments


def _split(arguments: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in arguments.items() if name not in tensors}


def _function(entry: str, arguments: dict[str, Any]) -> Call:
    named = {RENAMED[entry].get(name, name): value for name, value in arguments.items()}
    if "act" in named:
        act = named.pop("act")
        drawn = act.training or act.lower > act.upper  # wrong bounds have to raise in eval too
        named["slope"] = (act.lower, act.upper) if drawn else (act.lower + act.upper) / 2
    if "dropout_training" in named:
        named["training"] = named.pop("dropout_training")
    tensors, options = _split(named)

    def ours(tensors, backend):
        return getattr(atrous, entry)(**tensors, **options, backend=backend)

    return Call(ours, lambda tensors: getattr(oracle, entry)(**tensors, **options), tensors, arguments)


def _module(entry: str, arguments: dict[str, Any], sample: Sample) -> Call:
    """Modules on meta, or the sample's; functional_call replaces their tensors."""
    try:
        children = {"conv": _conv(arguments), "bn": _bn(arguments), "act": _act(arguments)}
    except Exception as error:
        raise NotApplicable("torch refuses to make the module") from error
    tensors, options = _split(arguments)
    tensors = {CHILD_TENSORS.get(name, name): value for name, value in tensors.items()}
    if sample.module is not None:
        place = PLACES[sample.name]
        children[place] = sample.module
        tensors |= {f"{place}.{name}": value for name, value in sample.module.state_dict(keep_vars=True).items()}
    conv, bn, act = children.values()
    if conv is not None and bn is not None and conv.out_channels != bn.num_features:
        raise NotApplicable("no convolution before a BatchNorm of this input")

    def run(module, tensors):
        module.training = options.get("dropout_training", False)
        named = {name: value for name, value in tensors.items() if "." in name}
        residual = tensors.get("residual", options.get("residual"))
        inputs = (tensors["input"],) if residual is None else (tensors["input"], residual)
        return torch.func.functional_call(module, named, inputs)

    def ours(tensors, backend):
        steps = {"ConvBNAct2d": (conv, bn, act), "BNAct2d": (bn, act), "AddAct": (act, options.get("dropout", 0.0))}
        return run(getattr(atrous.nn, entry)(*steps[entry], backend=backend), tensors)

    plain = oracle.Plain(nn.Identity() if conv is None else conv, bn, act)
    return Call(ours, lambda tensors: run(plain, tensors), tensors, arguments)


def _conv(arguments: dict[str, Any]) -> nn.Conv2d | None:
    if "weight" not in arguments:
        return None
    weight, groups, bias = arguments["weight"], arguments["groups"], arguments.get("bias") is not None
    geometry = [arguments.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    sizes = weight.shape[1] * groups, weight.shape[0], weight.shape[2:]
    return nn.Conv2d(*sizes, *geometry, groups, bias, device="meta")


def _bn(arguments: dict[str, Any]) -> nn.BatchNorm2d | None:
    if "running_mean" not in arguments:
        return None
    mean, x, momentum = arguments["running_mean"], arguments["input"], arguments.get("momentum", 0.1)
    affine, tracks = arguments.get("bn_weight") is not None, mean is not None
    channels = mean.numel() if tracks else x.shape[1] if x.dim() > 1 else 1
    bn = nn.BatchNorm2d(channels, arguments["eps"], momentum, affine, tracks, device="meta")
    return bn.train(arguments.get("training", False))


def _act(arguments: dict[str, Any]) -> nn.Module | None:
    slope = arguments.get("slope", 1.0)
    if "act" in arguments:
        return arguments["act"]
    if isinstance(slope, Tensor):
        return nn.PReLU(slope.numel(), device="meta")
    return nn.ReLU() if slope == "relu" else None if slope == 1.0 else nn.LeakyReLU(slope)


class Tiny(nn.Module):
    """stem -> operator -> tail; it holds the operator's other tensors."""

    def __init__(self, stem: nn.Module, operator: Callable[..., Tensor], tail: nn.Module, tensors: Tensors):
        super().__init__()
        self.stem, self.operator, self.tail = stem, operator, tail
        self.names = tuple(name for name in tensors if name != "input")
        for name in self.names:
            setattr(self, name, tensors[name])

    def forward(self, input):
        return self.tail(self.operator(self.stem(input), **{name: getattr(self, name) for name in self.names}))


def _fused(sample: Sample) -> Call:
    """fuse() of the operator behind a convolution, or of a convolution before a BatchNorm, which change nothing."""
    tensors, options = _split(sample.arguments)
    if sample.module is not None:
        tensors |= dict(sample.module.state_dict(keep_vars=True))

    def model(tensors):
        x, stem, tail = tensors["input"], nn.Identity(), nn.Identity()
        if sample.name in CONVOLUTIONS and x.dim() == 4:
            tail = nn.BatchNorm2d(tensors["weight"].shape[0], EPS, affine=False).to(x.dtype).eval()
        elif x.dim() == 4 and x.shape[1]:
            stem = nn.Conv2d(x.shape[1], x.shape[1], 1, groups=x.shape[1], bias=False).to(x.dtype).requires_grad_(False)
            stem.weight.fill_(1.0)
        if sample.module is None:
            return Tiny(stem, functools.partial(sample.operator, **options), tail, tensors)
        child = copy.deepcopy(sample.module)
        for name, value in tensors.items():
            if name != "input":
                setattr(child, name, value)
        return nn.Sequential(stem, child, tail)

    def ours(tensors, backend):
        return atrous.fuse(model(tensors), backend=backend)(tensors["input"])

    return Call(ours, lambda tensors: model(tensors)(tensors["input"]), tensors, _arguments(sample))
