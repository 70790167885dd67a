"""The interface that every backend module implements: library, native and triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..core.spec import Epilogue, Spec


class Backend(Protocol):
    """Convolutions and epilogues of one implementation.

    Shapes and dtypes, in every method:
        input: x: (N, C, H, W) fp16 | bf16 | fp32 | fp64. weight: w: (C_out, C / groups, kH, kW). bias: b: (C_out,) or
        None. z, y: (N, C_out, H', W'), in the layout of x or w: channels_last if either is. All have the dtype of x.
        mean, var: (C_out,) fp32, or fp64 for fp64 tensors.
        Without a convolution z may have any number of dimensions from 2 on; dimension 1 holds the channels.

    The arguments have been checked (core/checks.py). No method mutates them.
    """

    name: str
    one_launch_statistics: bool  # convolution_statistics computes z and its statistics in one launch

    def available(self) -> list[str]:
        """Reasons why the backend cannot run on this machine; empty if it can."""

    def reasons(self, input: Tensor, weight: Tensor | None, spec: Spec | None) -> list[str]:
        """Reasons why the backend cannot run this call, available() included; empty if it can.

        weight is None: only the epilogue is run.
        """

    def primitive(self, name: str, x: Tensor) -> Callable:
        """The implementation of a primitive without a convolution, such as "_statistics", for tensors like x.

        Its arguments and results are those of the schema of that name in schemas.def, with the Epilogue whole.
        """

    def epilogue(self, z: Tensor, arguments: Epilogue) -> Tensor:
        """y = drop(act(z * scale + shift + r)), or drop(act(z * scale + shift) + r); see core.spec.Epilogue."""

    def conv_epilogue(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
    ) -> Tensor:
        """y = epilogue(conv2d(x, w) + b)."""

    def convolution(self, input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
        """z = conv2d(x, w) + b, rounded to the dtype of x."""

    def convolution_statistics(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z, mean and var: the convolution, and the mean and biased variance of each channel of z."""

    def convolution_backward(
        self, grad: Tensor, input: Tensor, weight: Tensor, spec: Spec, layout: torch.memory_format, needed: list[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx, dw and db, those that `needed` asks for, in the shapes and dtypes of x, w and b; the others are None.

        grad: dz. input: only its size is used if dw is not needed. layout: the layout of x in the forward.
        """

    # Frozen convolutions: the weight does not change, so the backend may store it in another form, once.

    def pack_reasons(self, input: Tensor, weight: Tensor, spec: Spec) -> list[str]:
        """Reasons why backend="auto" does not take this backend for a frozen convolution; empty if it does."""

    def pack_key(self, input: Tensor, weight: Tensor, spec: Spec) -> tuple:
        """Everything but the weight that determines the packed weight: calls with equal keys share it."""

    def pack(self, input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
        """The weight in the form that packed_conv_epilogue reads; the weight itself if that needs no other form."""

    def packed_normalizes(self, input: Tensor, weight: Tensor, spec: Spec) -> bool:
        """True if packed_conv_epilogue normalizes each output while it is in the cache: a BatchNorm costs no time."""

    def packed_conv_epilogue(
        self, input: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
    ) -> Tensor:
        """conv_epilogue with packed = pack(input, weight, spec)."""
