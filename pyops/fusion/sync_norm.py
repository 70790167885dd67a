"""nn.SyncBatchNorm in a fused model's graph: one node, which a site takes as its BatchNorm.

torch's own forward gathers the statistics in an autograd function, which Dynamo does not keep as one node, and refuses
CPUs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..core import graph_compat
from ..core.call_args import BatchNormArgs, PostOpArgs
from ..core.sync_stats import Group
from ..nn import batch_norm_args


def sync_batch_norm(
    input: Tensor, running_mean, running_var, weight, bias, training: bool, momentum: float, eps: float, group: tuple
) -> Tensor:
    """F.batch_norm with the statistics of a group of processes, given as the fields of a Group."""
    batch_norm = BatchNormArgs(running_mean, running_var, weight, bias, training, momentum, eps, Group(*group), "")
    with graph_compat.compiling(False):
        return functional.normalize(input, batch_norm, PostOpArgs(1.0, None, False))


def install(model: nn.Module, rewrites: Callable[[], bool]) -> None:
    """Makes Dynamo put sync_batch_norm into the graphs of such a model; elsewhere nn.SyncBatchNorm runs as before.

    rewrites: asked while Dynamo traces, tells whether the sites of its graph will be replaced.
    """
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        _install(rewrites)


@functools.cache
def _install(rewrites: Callable[[], bool]) -> None:
    plain, node = nn.SyncBatchNorm.forward, torch.compiler.allow_in_graph(sync_batch_norm)

    @functools.wraps(plain)
    def forward(self: nn.SyncBatchNorm, input: Tensor) -> Any:
        group = Group.of(self.process_group) if self.training and rewrites() else None
        if group is None:
            return plain(self, input)
        return node(input, *batch_norm_args(self)[:7], tuple(group))

    nn.SyncBatchNorm.forward = forward  # type: ignore[method-assign]
