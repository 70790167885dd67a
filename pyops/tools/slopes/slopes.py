"""Find the slope tensors of a checkpoint and summarize each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SIBLINGS = ("bias", "running_mean", "running_var")
NORM = re.compile(r"norm|^(ln|rms)", re.IGNORECASE)  # nn.RMSNorm, nn.LayerNorm(bias=False): 1-D weights, no bias


@dataclass(frozen=True)
class Slopes:
    """One slope tensor of a checkpoint; min, mean, max and the counts are over its finite slopes, None if none is."""

    name: str
    channels: int
    min: float | None
    mean: float | None
    max: float | None
    below_0: int
    above_1: int
    not_finite: int


def learned(weights: Mapping[str, Tensor]) -> list[Slopes]:
    """The slope tensors of a state_dict in its order, which is the order of the modules' definition: the depth.

    A state_dict has only names and shapes. A slope tensor is floating-point, 1-D, named "weight", and has no "bias",
    "running_mean" or "running_var" beside it, as BatchNorm's weight has. The weight of a normalization without a bias
    looks the same: it is left out if its module's name contains "norm", or begins with "ln" or "rms".
    """
    slopes = []
    for name, value in weights.items():
        prefix = name.removesuffix("weight")
        if name.rpartition(".")[2] != "weight" or value.dim() != 1 or not value.is_floating_point():
            continue
        beside = any(prefix + sibling in weights for sibling in SIBLINGS)
        if value.numel() and not beside and not NORM.search(prefix.rstrip(".").rpartition(".")[2]):
            slopes.append(_summary(name, value))
    return slopes


def _summary(name: str, value: Tensor) -> Slopes:
    finite = value[value.isfinite()].double()
    low, mean, high = (float(f(finite)) if finite.numel() else None for f in (torch.min, torch.mean, torch.max))
    below, above = int((finite < 0).sum()), int((finite > 1).sum())
    return Slopes(name, value.numel(), low, mean, high, below, above, value.numel() - finite.numel())
