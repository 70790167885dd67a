"""Epilogue arguments and error budgets of the tests of libatrous.so's primitives."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from atrous.core.spec import Epilogue
from atrous.testing import assert_tensor

KINDS = ("relu", "number", "tensor", "random")
PLACES = (None, "before", "after")
CASES = list(itertools.product(KINDS, PLACES))
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SHAPES = ((2, 1, 7, 7), (1, 3, 13, 29), (2, 7, 1, 1), (1, 31, 7, 7), (2, 65, 5, 3), (1, 64, 9, 11))


def arguments(like: Tensor, kind: str, place: str | None, norm=True, dtype: torch.dtype | None = None) -> Epilogue:
    """Random epilogue arguments for an output like this one."""
    channels, dtype = like.shape[1], dtype or like.dtype
    mean, gamma, beta = torch.randn(3, channels).to(dtype)
    slope = torch.randn(channels if channels % 2 else 1).to(dtype) if kind == "tensor" else None
    return Epilogue(
        mean=mean if norm else None,
        var=torch.rand(channels).add(0.5).to(dtype) if norm else None,
        gamma=gamma if norm else None,
        beta=beta if norm else None,
        slope_kind=kind,
        slope_value=0.125 if kind == "random" else -0.3,
        slope_upper=0.333,
        slope=slope,
        seed=torch.randint(-(2**63), 2**63 - 1, (2,)) if kind == "random" else None,
        residual=torch.randn_like(like) if place else None,
        residual_after_act=place == "after",
    )


def assert_near(result: Tensor, truth: Tensor, eager: Tensor) -> None:
    """The error is at most that of eager in the same dtype, or a few roundings of fp32 (fp64)."""
    assert_tensor(result, eager, truth, ratio=1.0, relative=1e-14 if result.dtype == torch.float64 else 1e-6)
