"""How far the results of a model are from those of another: the largest relative difference of a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-3  # part of the largest gradient: smaller ones are compared on this scale, zero has no digits


def error(got: list[Any], expected: list[Any], common: bool = False) -> float:
    """The largest |got - expected| of a tensor, divided by the tensor's largest value. common: or by SMALLEST times the
    largest value of all tensors.
    """
    if len(got) != len(expected):
        raise RuntimeError(f"{len(got)} values, the model has {len(expected)}")
    scales = [e.abs().max().item() if numbers(e) else 0.0 for e in expected]
    smallest = SMALLEST * max(scales, default=0.0) if common else 0.0
    worst = 0.0
    for g, e, scale in zip(got, expected, scales):
        if not isinstance(e, Tensor):
            if type(g) is not type(e) or (isinstance(e, int | float | str | bool) and g != e):
                raise RuntimeError(f"a value is {g!r}, the model's is {e!r}")
            continue
        if not isinstance(g, Tensor) or (g.shape, g.dtype) != (e.shape, e.dtype):
            raise RuntimeError(f"a tensor is {like(g)}, the model's is {like(e)}")
        if numbers(e):
            off = (g - e).abs().max().item()
            worst = max(worst, off and off / max(scale, smallest), key=lambda v: (v != v, v))
        elif not torch.equal(g, e):
            raise RuntimeError(f"a tensor of {e.dtype} differs")
    return worst


def numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def like(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
