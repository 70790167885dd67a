"""The argument types of the kernels: convolution geometry (Spec) and epilogue (Epilogue)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]


def accumulate_type(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which epilogues, sums and statistics are computed: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Spec(NamedTuple):
    """Geometry of a 2-D convolution, in the order of torch's arguments. Each pair is (height, width)."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @staticmethod
    def of(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int = 1) -> Spec:
        """The geometry of an operator's arguments, whose pairs are lists."""
        return Spec(tuple(stride), tuple(padding), tuple(dilation), groups)  # type: ignore[arg-type]

    def output_size(self, input_size: Sequence[int], kernel_size: Sequence[int]) -> Pair:
        """floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1, height and width."""
        height, width = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                input_size, kernel_size, self.stride, self.padding, self.dilation
            )
        )
        return height, width


class Epilogue(NamedTuple):
    """u = z * scale + shift (+ residual), y = dropout(act(u) (+ residual)): the arguments after z in schemas.def.

    mean is None: scale = 1, shift = beta or 0. Otherwise scale = gamma / sqrt(var + eps), shift = beta - mean * scale.
    slope_kind: "relu" | "number" (slope_value) | "tensor" (slope) | "random" (slope_value to slope_upper, from seed).
    residual: has the shape, dtype and strides of z.
    dropout: the probability of a zero; the rest is scaled by 1 / (1 - dropout).
    seed: (2,) int64 on the device of z: Philox seed and offset, if slopes or dropout are drawn.
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    slope: Tensor | None = None
    residual: Tensor | None = None
    slope_kind: str = "number"
    eps: float = 1e-5
    slope_value: float = 1.0
    slope_upper: float = 1.0
    residual_after_act: bool = False
    seed: Tensor | None = None
    dropout: float = 0.0

    @property
    def residual_place(self) -> str:
        """Where the residual is added: "none" | "before" | "after", relative to the activation."""
        return "none" if self.residual is None else "after" if self.residual_after_act else "before"


def flat(*arguments: Any) -> list[Any]:
    """An operator's arguments, with the fields of a Spec or an Epilogue in its place, as schemas.def lists them."""
    return [value for one in arguments for value in (one if isinstance(one, (Spec, Epilogue)) else (one,))]
