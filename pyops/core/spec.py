"""What travels to a kernel: the geometry of a convolution and the arguments of an epilogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]


def accumulate_type(dtype: torch.dtype) -> torch.dtype:
    """What sums, statistics and everything else of an epilogue are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Spec:
    """Geometry of a 2-D convolution; every pair is (height, width)."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def output_size(self, input_size: Pair, kernel_size: Pair) -> Pair:
        """floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1, height and width."""
        height, width = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                input_size, kernel_size, self.stride, self.padding, self.dilation
            )
        )
        return height, width


class Epilogue(NamedTuple):
    """u = z * scale + shift (+ residual), y = drop(act(u) (+ residual)): the arguments that follow z in schemas.def.

    mean is None: scale is 1, shift is beta or 0. Else scale = gamma / sqrt(var + eps), shift = beta - mean * scale.
    slope_kind: "relu" | "number" (slope_value) | "tensor" (slope) | "random" (slope_value to slope_upper, from seed).
    residual: the shape, dtype and strides of z.
    dropout: the probability of a zero; the rest is scaled by 1 / (1 - dropout).
    seed: (2,) int64 on the device of z: the generator's seed and offset, where slopes or zeros are drawn.
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    eps: float = 1e-5
    slope_kind: str = "number"
    slope_value: float = 1.0
    slope_upper: float = 1.0
    slope: Tensor | None = None
    seed: Tensor | None = None
    residual: Tensor | None = None
    residual_after_act: bool = False
    dropout: float = 0.0
