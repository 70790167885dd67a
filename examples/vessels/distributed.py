"""Several processes of one run, as torchrun starts them; without torchrun, one process and no communication."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .config import RunError


@dataclass(frozen=True)
class Process:
    """This process: its rank among `world` processes, and the device that it works on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True in the process that prints, validates and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Returns the model, or in several processes one whose gradients are averaged over them."""
        return nn.parallel.DistributedDataParallel(model) if self.world > 1 else model

    def mean(self, value: Tensor) -> Tensor:
        """Returns a number's mean over the processes; NaN in one is NaN in all, so that all stop together."""
        value = value.detach().clone()
        if self.world > 1:
            dist.all_reduce(value)
            value /= self.world
        return value

    def from_first(self, value: Any) -> Any:
        """Returns the first process's value in every process; the others wait for it."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device if self.device.type == "cuda" else None)
        return box[0]


@contextlib.contextmanager
def process(name: str) -> Iterator[Process]:
    """Joins the processes of torchrun, with NCCL on GPUs and Gloo on CPUs, and leaves them at the end."""
    device = resolve(name)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Process(0, 1, device)
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Process(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def resolve(name: str) -> torch.device:
    """Returns the device of "auto", "cpu", "cuda" or "cuda:1". Raises RunError where there is none of that name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f"--device: expected auto, cpu, cuda or cuda:1, got {name!r}") from error
    there = torch.cuda.device_count() if device.type == "cuda" else int(device.type == "cpu")
    if (device.index or 0) >= there:
        raise RunError(f"--device {name}: this machine has no such device that this program knows")
    return device
