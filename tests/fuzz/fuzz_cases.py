"""The cases of the fuzzer that call an operator: plain data, and the geometries that are legal."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from atrous.core.spec import Spec

SLOPES = {"identity": 1.0, "relu": "relu", "number": -0.25, "shared": None, "channel": None, "random": (0.125, 0.4)}


class Case(NamedTuple):
    """One call; `values` seeds its tensors, `config` selects the Triton config among those that fit."""

    backend: str
    device: str
    # forward, training: conv_bn_act; primitive, frozen: backend steps; passes: without the convolution;
    # winograd, gradients: Winograd's operators
    form: str
    dtype: str
    batch: int
    channels: int
    size: tuple[int, int]
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Any
    dilation: tuple[int, int]
    groups: int
    layouts: tuple[str, str]  # first: input and gradient; second: weight and residual
    memory: str  # aligned, odd (no address is 16-byte aligned), sliced (not dense)
    bias: bool
    norm: str
    vectors: str  # dtype of the BatchNorm vectors: "same" or "float32"
    eps: float
    slope: str
    residual: str
    broadcast: bool
    dropout: float
    needs: tuple[str, ...]  # operands whose gradients are computed
    recompute: bool
    precision: str  # fp32 MMA precision; the operands of a "tf32" case are exact in tf32
    tile: tuple[int, int, bool] | None  # Winograd's: outputs, and if it is multiplied in 16-bit fixed point
    transformed: bool  # Winograd's weight is given transformed
    config: int
    values: int

    @property
    def geometry(self) -> tuple:
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def spec(self) -> Spec:
        return Spec(*self.geometry)

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of input and weight."""
        weight = self.out_channels, self.channels // self.groups, *self.kernel
        return (self.batch, self.channels, *self.size), weight

    def output(self) -> tuple[int, ...]:
        return tuple(
            F.conv2d(*(torch.empty(shape, device="meta") for shape in self.shapes), None, *self.geometry).shape
        )

    def axes(self) -> dict[str, str]:
        """The values that the report counts, by axis."""
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel)]
        padding = self.padding if isinstance(self.padding, (str, int)) else "pair"
        multiplier = self.out_channels // self.groups
        grouped = "one" if self.groups == 1 else "groups" if self.channels > self.groups else "depthwise"
        pixels = math.prod(self.size)
        dilation = "wider than input" if spans > list(self.size) else "dilated"
        return {
            "form": self.form,
            "backend": self.backend,
            "dtype": f"{self.dtype} {self.precision}" if self.dtype == "float32" else self.dtype,
            "batch": str(self.batch),
            "channels": str(self.channels),
            "pixels": next((f"at most {most}" for most in (1, 8, 64, 256) if pixels <= most), "more"),
            "kernel": "x".join(map(str, self.kernel)),
            "stride": "x".join(map(str, self.stride)),
            "padding": padding if isinstance(padding, str) else "number",
            "dilation": "1" if self.dilation == (1, 1) else dilation,
            "groups": f"{grouped} x{multiplier}" if grouped == "depthwise" else grouped,
            "layouts": " ".join(self.layouts),
            "memory": self.memory,
            "norm": f"{self.norm} {self.vectors}",
            "slope": self.slope,
            "residual": f"{self.residual} broadcast" if self.broadcast and self.residual != "none" else self.residual,
            "dropout": str(self.dropout),
            "tile": str(self.tile),
        }


@cache
def paddings(extent: int, kernel: int, stride: int, dilation: int) -> dict[int, int]:
    """The outputs along an axis for each padding that is legal, the smallest padding first."""
    span = dilation * (kernel - 1)
    least = max(0, math.ceil((span + 1 - extent) / 2))
    outputs = {p: (extent + 2 * p - span - 1) // stride + 1 for p in range(least, least + span + 3)}
    return {p: n for p, n in outputs.items() if meets_input(extent, n, kernel, stride, p, dilation)}


def meets_input(extent: int, output: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """True if an output reads more than padding along this axis; where none does, oneDNN of torch 2.13 crashes."""
    positions = (i * stride - padding + tap * dilation for i in range(output) for tap in range(kernel))
    return any(0 <= position < extent for position in positions)
