"""The only list of activations: each is a slope for the values that are not positive.

    y = u          if u > 0
    y = slope * u  otherwise

Sources: LeakyReLU, Maas et al. 2013; PReLU, He et al. 2015 (arXiv:1502.01852); RReLU, Xu et al. 2015
(arXiv:1505.00853).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SlopeLike = str | float | Tensor | tuple[float, float]


class Slope(NamedTuple):
    """A slope as the kernels take it: the fields of the same names in spec.Epilogue."""

    kind: str  # relu | number | tensor | random
    value: float = 1.0
    upper: float = 1.0
    tensor: Tensor | None = None


class Activation(NamedTuple):
    """How an activation is made for a number of channels, and what slope its module stands for."""

    module: type[nn.Module]
    make: Callable[[int], nn.Module]
    slope: Callable[[Any, bool], SlopeLike]


def _bounds(lower: float, upper: float) -> tuple[float, float]:
    if not (math.isfinite(lower) and math.isfinite(upper) and lower <= upper):  # the type that F.rrelu raises
        raise RuntimeError(f"slope: expected finite bounds, lower <= upper, got ({lower}, {upper})")
    return float(lower), float(upper)


def _rrelu(module: nn.RReLU, training: bool) -> SlopeLike:
    lower, upper = _bounds(module.lower, module.upper)
    return (lower, upper) if training else (lower + upper) / 2


ACTIVATIONS = {
    "identity": Activation(nn.Identity, lambda channels: nn.Identity(), lambda module, training: 1.0),
    "relu": Activation(nn.ReLU, lambda channels: nn.ReLU(inplace=True), lambda module, training: "relu"),
    "leaky_relu": Activation(
        nn.LeakyReLU, lambda channels: nn.LeakyReLU(0.01, inplace=True), lambda module, training: module.negative_slope
    ),
    "prelu": Activation(
        nn.PReLU, lambda channels: nn.PReLU(channels, init=0.25), lambda module, training: module.weight
    ),
    "rrelu": Activation(nn.RReLU, lambda channels: nn.RReLU(inplace=True), _rrelu),
}
_BY_MODULE = {activation.module: activation for activation in ACTIVATIONS.values()}


def make(name: str, channels: int) -> nn.Module:
    """A new activation module for `channels` channels; PReLU gets one slope a channel, starting at 0.25."""
    if name not in ACTIVATIONS:
        raise ValueError(f"act: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name].make(channels)


def is_activation(module: object) -> bool:
    """Whether this is, to the exact type, a module that an epilogue can stand in for."""
    return type(module) in _BY_MODULE


def of_module(module: nn.Module | None, training: bool = False) -> SlopeLike:
    """The slope argument that a module stands for. RReLU draws in training, else takes the mean of its bounds."""
    if module is None:
        return 1.0
    if not is_activation(module):
        known = ", ".join(f"nn.{kind.__name__}" for kind in _BY_MODULE)
        raise TypeError(f"act: expected None or one of {known}, got {type(module).__name__}")
    return _BY_MODULE[type(module)].slope(module, training)


def draw_seed(device: torch.device | str) -> Tensor:
    """Seed and offset of the counter-based generator, from torch's own: torch.manual_seed reproduces the draws."""
    return torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device)


def of(slope: SlopeLike) -> Slope:
    """The slope argument of the functional ops, as the kernels take it."""
    if isinstance(slope, Tensor):
        return Slope("tensor", tensor=slope)
    if isinstance(slope, str):
        if slope != "relu":
            raise ValueError(
                f"slope: the only name is 'relu', got {slope!r}; pass a number, a tensor or (lower, upper)"
            )
        return Slope("relu")
    if isinstance(slope, Real) and not isinstance(slope, bool):
        return Slope("number", float(slope))
    if isinstance(slope, tuple) and len(slope) == 2 and all(isinstance(bound, Real) for bound in slope):
        return Slope("random", *_bounds(*slope))
    raise TypeError(f"slope: expected 'relu', a number, a tensor or a pair (lower, upper), got {type(slope).__name__}")
