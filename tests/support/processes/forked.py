"""Forks after this process has used torch's threads, and prints how the children end, as JSON.

    python tests/support/processes/forked.py functional frozen fused

A child ends with "same" if it computed what this process had computed, with "differs", or with the number of the signal
that ended it: an alarm ends one that hangs. A child of torch's own, "torch", hangs if it divides elements among as many
threads as its parent did, since GNU's OpenMP does not start them again; "small" are too few elements for that.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch
import torch.nn.functional as F
from digests import digest
from thread_cases import KINDS, Calls, Tensors, calls, net, pictures, without_gradients
from threads import numbers_of_threads
from torch.utils.data import DataLoader

import atrous

SECONDS = 60
PARENT, CHILD = 2, 1  # torch's threads; a worker of a DataLoader sets one


def fused(**options: object) -> Calls:
    draw = Tensors(torch.float32)
    model, xs = atrous.fuse(net(draw), dynamic=True, **options), pictures(draw)[:3]  # one graph, and so the same bits
    return [without_gradients(lambda x=x: model(x)) for x in xs]


def of_torch() -> Calls:
    """An operator that divides its elements among torch's threads, and a convolution of oneDNN."""
    x, weight = torch.randn(2, 64, 56, 56), torch.randn(64, 64, 3, 3)
    return [lambda: [torch.relu(x)], lambda: [F.conv2d(x, weight)]]


def small() -> Calls:
    """Elements that torch does not divide."""
    draw = Tensors(torch.float32)
    z, norm = draw(1, 8, 5, 5), draw.norm(8)
    return [lambda: [torch.relu(z)], lambda: [atrous.bn_act(z, *norm)], lambda: [atrous.add_act(z, z, slope=0.1)]]


def prepare(kind: str) -> Calls:
    if kind == "torch":
        return of_torch()
    return calls(kind, torch.float32) if kind in KINDS else fused(freeze=kind == "fused_frozen")


class Results:
    """A data set whose items are the digests of calls."""

    def __init__(self, listed: Calls):
        self.listed = listed

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, index: int) -> str:
        return digest(self.listed[index]())


def in_loader(results: Results) -> list[str]:
    context = "fork"
    return list(DataLoader(results, batch_size=None, num_workers=2, multiprocessing_context=context, timeout=SECONDS))


def in_fork(results: Results, expected: list[str], threads: int | None) -> str:
    """The end of a child that calls everything; threads: the number that it sets first, if any."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        if threads is not None:
            torch.set_num_threads(threads)
        os._exit(int(list(results) != expected))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "same", 1: "differs"}.get(status, f"signal {-status}")


def ends(kind: str) -> dict[str, str]:
    results = Results(prepare(kind))
    list(results)  # with the parent's threads
    (expected,) = (list(results) for _ in numbers_of_threads(CHILD))
    loaded = "same" if in_loader(results) == expected else "differs"
    return {"loader": loaded, "one thread": in_fork(results, expected, CHILD)}


if __name__ == "__main__":
    torch.set_num_threads(PARENT)
    listed = {kind: ends(kind) for kind in ("torch", *sys.argv[1:])}
    results = Results(small())
    print(json.dumps({**listed, "small": {"as it is": in_fork(results, list(results), None)}}))
