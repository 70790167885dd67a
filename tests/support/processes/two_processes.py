"""Two processes that run the same checks in the same order, over gloo: one pair for all, since importing is slow."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

Check = tuple[str, Callable[[], object]]


def errors_of(checks: Callable[[int], Iterable[Check]]) -> dict[tuple[str, int], str]:
    """(check, rank) -> error, "" if it passed. checks(rank): the names and functions of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_run, (checks, port, queue), nprocs=2)
    errors = {}
    while not queue.empty():
        name, rank, error = queue.get()
        errors[name, rank] = error
    return errors


def _run(rank: int, checks: Callable[[int], Iterable[Check]], port: int, outcomes) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name, check in checks(rank):
        failed, error = torch.zeros(1), ""
        try:
            check()
        except Exception as caught:
            failed, error = torch.ones(1), f"{type(caught).__name__}: {caught}"
        outcomes.put((name, rank, error))
        dist.all_reduce(failed)
        if failed:  # the processes may be at different collectives now: run no further check
            break
    dist.destroy_process_group()
