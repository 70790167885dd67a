"""The operations of a site in every spelling: those of torch and torch.nn.functional, which Dynamo's graphs hold, and
those of aten, which exported graphs hold.
"""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx

from ..sync_norm import sync_batch_norm

aten = torch.ops.aten


class Spelling(NamedTuple):
    """role: the operation. names: the parameters in order. writes: the operation changes its first argument."""

    role: str
    names: tuple[str, ...]
    writes: bool = False


def _named(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# role -> the default of each parameter; a parameter without one is None
DEFAULTS: dict[str, dict[str, Any]] = {
    "conv": {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "transposed": False},
    "bn": {"training": False, "momentum": 0.1, "eps": 1e-5},
    "add": {"alpha": 1},
    "relu": {},
    "leaky_relu": {"negative_slope": 0.01},
    "prelu": {},
    "rrelu": {"lower": 1 / 8, "upper": 1 / 3, "training": False},
    "dropout": {"p": 0.5, "training": True},
    "feature_dropout": {"training": False},
}
_RENAMED = {"train": "training", "self": "input"}  # torch's other names of an argument
ACTIVATIONS = ("relu", "leaky_relu", "prelu", "rrelu")

_CONV = _named("input weight bias stride padding dilation groups")
_ATEN_CONV = _named("input weight bias stride padding dilation transposed output_padding groups")
_BN = _named("input running_mean running_var weight bias training momentum eps")  # torch.nn.functional's order
_TORCH_BN = _named("input weight bias running_mean running_var training momentum eps cudnn_enabled")
_ADD = _named("input other")
_RELU, _LEAKY = _named("input inplace"), _named("input negative_slope inplace")
_PRELU, _RRELU = _named("input weight"), _named("input lower upper training inplace")
_DROPOUT = _named("input p training inplace")
_FEATURE_DROPOUTS = (F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)

SPELLINGS: dict[Any, Spelling] = {
    **dict.fromkeys((torch.conv2d, F.conv2d, aten.conv2d.default, aten.conv2d.padding), Spelling("conv", _CONV)),
    aten.convolution.default: Spelling("conv", _ATEN_CONV),
    F.batch_norm: Spelling("bn", _BN),
    sync_batch_norm: Spelling("bn", (*_BN, "group")),
    **dict.fromkeys((torch.batch_norm, aten.batch_norm.default), Spelling("bn", _TORCH_BN)),
    **dict.fromkeys((operator.add, torch.add, "add", aten.add.Tensor), Spelling("add", _ADD)),
    **dict.fromkeys((operator.iadd, "add_", aten.add_.Tensor), Spelling("add", _ADD, True)),
    **dict.fromkeys((F.relu, torch.relu, "relu", aten.relu.default), Spelling("relu", _RELU)),
    **dict.fromkeys((F.relu_, torch.relu_, "relu_", aten.relu_.default), Spelling("relu", _RELU, True)),
    **dict.fromkeys((F.leaky_relu, aten.leaky_relu.default), Spelling("leaky_relu", _LEAKY)),
    **dict.fromkeys((F.leaky_relu_, aten.leaky_relu_.default), Spelling("leaky_relu", _LEAKY, True)),
    **dict.fromkeys((F.prelu, torch.prelu, "prelu", aten.prelu.default), Spelling("prelu", _PRELU)),
    **dict.fromkeys((F.rrelu, torch.rrelu, aten.rrelu.default), Spelling("rrelu", _RRELU)),
    **dict.fromkeys((F.rrelu_, torch.rrelu_, aten.rrelu_.default), Spelling("rrelu", _RRELU, True)),
    **dict.fromkeys((F.dropout, torch.dropout, aten.dropout.default), Spelling("dropout", _DROPOUT)),
    **dict.fromkeys(_FEATURE_DROPOUTS, Spelling("feature_dropout", _DROPOUT)),
    **dict.fromkeys((torch.dropout_, aten.dropout_.default), Spelling("dropout", _DROPOUT, True)),
}


def role(node: fx.Node) -> str:
    """conv | bn | add | an activation | dropout | feature_dropout, or "" for any other node."""
    spelling = _spelling(node)
    return "" if spelling is None else spelling.role


def arguments(node: fx.Node) -> SimpleNamespace:
    """The arguments of a node that has a role, by name, with torch's defaults."""
    spelling = _spelling(node)
    assert spelling is not None
    given = {**dict(zip(spelling.names, node.args)), **node.kwargs}
    given = {_RENAMED.get(name, name): argument for name, argument in given.items()}
    return SimpleNamespace(**{**dict.fromkeys(spelling.names), **DEFAULTS[spelling.role], **given})


def in_place(node: fx.Node) -> bool:
    """True if a node that has a role writes its result into its first argument."""
    spelling = _spelling(node)
    return spelling is not None and (spelling.writes or getattr(arguments(node), "inplace", None) is True)


def operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """The two tensors of a sum; () if one is a number, or the sum is scaled (alpha) or written to `out`."""
    a = arguments(node)
    pair = (a.input, a.other)
    plain = a.alpha == 1 and getattr(a, "out", None) is None
    return pair if plain and all(isinstance(value, fx.Node) for value in pair) else ()


def _spelling(node: fx.Node) -> Spelling | None:
    if node.op not in ("call_function", "call_method"):
        return None
    try:
        return SPELLINGS.get(node.target)
    except TypeError:  # a target that cannot be hashed
        return None
