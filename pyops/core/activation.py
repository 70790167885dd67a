"""The supported activations. Each is defined by its slope for non-positive values:

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
from torch.fx import Proxy

from .torch_compat import parameter

SlopeLike = str | float | Tensor | tuple[float, float]


class Slope(NamedTuple):
    """A slope in the form that kernels take: the slope fields of spec.Epilogue."""

    kind: str  # relu | number | tensor | random
    value: float = 1.0
    upper: float = 1.0
    tensor: Tensor | None = None


class Activation(NamedTuple):
    """The module class of an activation, its constructor for C channels, and module -> slope argument."""

    module: type[nn.Module]
    make: Callable[[int], nn.Module]
    slope: Callable[[Any, bool], SlopeLike]


def _bounds(lower: float, upper: float) -> tuple[float, float]:
    if not (math.isfinite(lower) and math.isfinite(upper) and lower <= upper):  # F.rrelu raises RuntimeError too
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
        nn.PReLU, lambda channels: nn.PReLU(channels, init=0.25), lambda module, training: parameter(module, "weight")
    ),
    "rrelu": Activation(nn.RReLU, lambda channels: nn.RReLU(inplace=True), _rrelu),
}
_BY_MODULE = {activation.module: activation for activation in ACTIVATIONS.values()}


def make(name: str, channels: int) -> nn.Module:
    """Returns a new activation module for `channels` channels; PReLU has one slope per channel, initially 0.25."""
    if name not in ACTIVATIONS:
        raise ValueError(f"act: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name].make(channels)


def is_activation(module: object) -> bool:
    """True if `module` is exactly of a class in ACTIVATIONS; a subclass may compute something else."""
    return type(module) in _BY_MODULE


def module_slope(module: nn.Module | None, training: bool = False) -> SlopeLike:
    """Returns the slope argument of an activation module; for RReLU in eval it is the mean of the bounds."""
    if module is None:
        return 1.0
    if not is_activation(module):
        known = ", ".join(f"nn.{kind.__name__}" for kind in _BY_MODULE)
        raise TypeError(f"act: expected None or one of {known}, got {type(module).__name__}")
    return _BY_MODULE[type(module)].slope(module, training)


def draw_seed(device: torch.device | str) -> Tensor:
    """Draws the Philox seed and offset, (2,) int64, from torch's generator, so torch.manual_seed reproduces them."""
    return torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device)


def parse_slope(slope: SlopeLike) -> Slope:
    """Converts the `slope` argument of the functional operators to the form that kernels take."""
    if isinstance(slope, Tensor) and slope.dim() == 0:
        slope = slope.reshape(1)
    if isinstance(slope, (Tensor, Proxy)):
        return Slope("tensor", tensor=slope)
    if isinstance(slope, str):
        if slope != "relu":
            raise ValueError(f"slope: expected 'relu', a number, a tensor or a pair (lower, upper), got {slope!r}")
        return Slope("relu")
    if isinstance(slope, Real) and not isinstance(slope, bool):
        return Slope("number", float(slope))
    if isinstance(slope, tuple) and len(slope) == 2 and all(isinstance(bound, Real) for bound in slope):
        return Slope("random", *_bounds(*slope))
    raise TypeError(f"slope: expected 'relu', a number, a tensor or a pair (lower, upper), got {type(slope).__name__}")
