"""The arguments of a functional operator in two groups: the BatchNorm, and what follows it (residual, activation)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import activation, checks
from .activation import SlopeLike
from .layout import laid_out
from .spec import Epilogue
from .sync_stats import Group


class BatchNormArgs(NamedTuple):
    """The BatchNorm arguments; absent if no vector is given and neither training nor required is set."""

    mean: Tensor | None = None
    var: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5
    group: Group | None = None  # processes that share the batch statistics
    prefix: str = "bn_"  # prefix of weight and bias in error messages
    required: bool = False
    deferred: list | None = None  # where update() puts the batch statistics, for somebody else to update with

    @property
    def present(self) -> bool:
        return self.required or self.training or any(v is not None for v in self[:4])

    def check(self, z: Tensor, size: tuple[int, ...]) -> None:
        if not self.present:
            return
        vectors = dict(zip(("running_mean", "running_var", f"{self.prefix}weight", f"{self.prefix}bias"), self[:4]))
        checks.batch_norm(vectors, size[1], z, self.eps, self.training)
        if self.training:
            checks.more_than_one_value(size)
            checks.number("momentum", self.momentum)

    def update(self, mean: Tensor, var: Tensor, count: Tensor | int) -> None:
        """running = (1 - momentum) * running + momentum * batch, with unbiased var; an empty batch changes nothing."""
        if self.deferred is not None:
            self.deferred.append((mean, var, count))
            return
        if self.mean is None or self.var is None or (isinstance(count, int) and count == 0):
            return
        with torch.no_grad():
            for running, batch in ((self.mean, mean), (self.var, var * (count / (count - 1)))):
                if running.dtype == batch.dtype:
                    running.lerp_(batch, self.momentum)
                else:  # computed in the wider dtype and rounded once
                    running.copy_(torch.lerp(running.to(batch.dtype), batch, self.momentum))


NO_BATCH_NORM = BatchNormArgs()


class PostOpArgs:
    """The residual, activation and dropout that follow the convolution and BatchNorm."""

    def __init__(
        self, slope: SlopeLike, residual: Tensor | None, after: bool, name="residual", required=False, dropout=0.0
    ):
        self.slope, self.residual, self.after = activation.parse_slope(slope), residual, bool(after)
        self.name, self.required, self.dropout = name, required, float(dropout)

    def check(self, z: Tensor, size: tuple[int, ...], autocast: bool) -> None:
        if self.residual is not None or self.required:
            checks.residual(self.name, self.residual, size, like=z)
        if self.slope.tensor is not None:
            checks.tensor("slope", self.slope.tensor, like=z)
            checks.slope(self.slope.tensor, size)
            if not autocast:
                checks.dtype("slope", self.slope.tensor, z.dtype if self.after else self.dtype(z))

    def dtype(self, z: Tensor) -> torch.dtype:
        """Returns the dtype of the result: the wider of z and the residual, as in eager's sum."""
        return z.dtype if self.residual is None else torch.promote_types(z.dtype, self.residual.dtype)

    def seed(self, device: torch.device) -> Tensor | None:
        return activation.draw_seed(device) if self.slope.kind == "random" or self.dropout else None

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.slope.tensor, self.residual

    def epilogue(self, batch_norm: BatchNormArgs, like: Tensor, size, memory_format) -> Epilogue:
        """Returns the arguments of the primitives for a z with the dtype of `like`, this size and this layout."""
        residual = self.residual
        if residual is not None:
            if tuple(residual.shape) != tuple(size):
                residual = residual.expand(size)
            residual = laid_out(residual, self.dtype(like), memory_format)
        kind, value, upper, slope = self.slope
        numbers = (batch_norm.eps, value, upper, self.after)
        return Epilogue(*batch_norm[:4], slope, residual, kind, *numbers, self.seed(like.device), self.dropout)
