"""Statistics over the processes of a group, as SyncBatchNorm has them; between the primitives of a site.

Functional collectives: torch.compile traces them. The processes' batches may be of unequal size, or empty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_collectives = torch.ops._c10d_functional


class Group(NamedTuple):
    """The processes that share the statistics of a batch."""

    name: str
    size: int

    @staticmethod
    def of(process_group) -> Group | None:
        """That of nn.SyncBatchNorm.process_group (None: all processes); None where it is this process alone."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return None
        group: torch.distributed.ProcessGroup = process_group or torch.distributed.group.WORLD  # type: ignore[assignment]
        size = torch.distributed.get_world_size(group)
        return Group(group.group_name, size) if size > 1 else None


def statistics(mean: Tensor, var: Tensor, count: int, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """mean, biased variance and number of the values of all processes, by Chan's formula in the order of the ranks.

    Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance (1983).
    """
    mine = torch.cat([mean, var, torch.full_like(mean[:1], count)])
    gathered = _collectives.all_gather_into_tensor(mine, group.size, group.name)
    everyone = _collectives.wait_tensor(gathered).view(group.size, -1)
    means, variances, counts = everyone.split([mean.numel(), var.numel(), 1], 1)
    total = counts.sum().clamp(min=1)
    overall = (counts * means).sum(0) / total
    return overall, (counts * (variances + (means - overall).square())).sum(0) / total, total


def summed(sums: Tensor, group: Group) -> Tensor:
    return _collectives.wait_tensor(_collectives.all_reduce(sums, "sum", group.name))
