"""Statistics over the processes of a group, as SyncBatchNorm has them; between the primitives of a site.

Functional collectives: torch.compile traces them. The processes' batches may be of unequal size, or empty.
"""

from __future__ import annotations

import torch
from torch import Tensor


def statistics(mean: Tensor, var: Tensor, count: int, group: str) -> tuple[Tensor, Tensor, Tensor]:
    """mean, biased variance and number of the values of all processes, by Chan's formula in the order of the ranks.

    Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance (1983).
    """
    from torch.distributed import _functional_collectives as collectives

    mine = torch.cat([mean, var, torch.full_like(mean[:1], count)])
    everyone = collectives.wait_tensor(collectives.all_gather_tensor(mine, 0, group)).view(-1, mine.numel())
    means, variances, counts = everyone.split([mean.numel(), var.numel(), 1], 1)
    total = counts.sum().clamp(min=1)
    overall = (counts * means).sum(0) / total
    return overall, (counts * (variances + (means - overall).square())).sum(0) / total, total


def summed(sums: Tensor, group: str) -> Tensor:
    from torch.distributed import _functional_collectives as collectives

    return collectives.wait_tensor(collectives.all_reduce(sums, "sum", group))
