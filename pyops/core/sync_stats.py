"""Batch statistics over the processes of a group, as in SyncBatchNorm.

Uses functional collectives, which torch.compile traces. The batches of the processes may differ in size or be empty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .torch_compat import collectives


class Group(NamedTuple):
    """A process group that shares batch statistics."""

    name: str
    size: int

    @staticmethod
    def of(process_group) -> Group | None:
        """Returns the Group of nn.SyncBatchNorm.process_group (None: all processes), or None for a single process."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return None
        group: torch.distributed.ProcessGroup = process_group or torch.distributed.group.WORLD  # type: ignore[assignment]
        size = torch.distributed.get_world_size(group)
        return Group(group.group_name, size) if size > 1 else None


def check_single_process(group: Group | None) -> None:
    """Raises for a layer that has to run in torch's own operators, which normalize with one process's statistics."""
    if group is not None:
        raise RuntimeError(
            "bn: expected statistics of one process in a transform, under create_graph=True, and for tensor subclasses "
            f"and tracers, got nn.SyncBatchNorm over {group.size} processes"
        )


def statistics(mean: Tensor, var: Tensor, count: int, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean, biased variance and count over all processes, by Chan's formula in rank order.

    Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance (1983).
    """
    local = torch.cat([mean, var, torch.full_like(mean[:1], count)])
    gathered = collectives.all_gather_into_tensor(local, group.size, group.name)
    ranks = collectives.wait_tensor(gathered).view(group.size, -1)
    means, variances, counts = ranks.split([mean.numel(), var.numel(), 1], 1)
    total = counts.sum().clamp(min=1)
    overall = (counts * means).sum(0) / total
    return overall, (counts * (variances + (means - overall).square())).sum(0) / total, total


def all_reduce_sum(sums: Tensor, group: Group) -> Tensor:
    return collectives.wait_tensor(collectives.all_reduce(sums, "sum", group.name))
