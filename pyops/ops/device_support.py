"""For which cards libatrous.so was built, as atrous._C tells."""

from __future__ import annotations

import importlib
import re
from functools import lru_cache

import torch

from ..tuning.table import constant

OLDEST_CARD = (8, 0)  # that kernels of ours are made for, in Triton and in C++


@lru_cache
def arch_list() -> str:
    """TORCH_CUDA_ARCH_LIST of the build; empty where it was built without CUDA, or not at all."""
    try:
        return importlib.import_module("..._C", __name__).build()["arch_list"]
    except ImportError:
        return ""


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@lru_cache
def image_fits(card: tuple[int, int], architectures: str) -> bool:
    """Whether code for one of these architectures ("8.0;9.0a;12.0+PTX") runs on a card of this compute capability.

    Code for x.y runs on x.z, z >= y; "a": on x.y alone; PTX is compiled for any newer card.
    Source: CUDA C++ Programming Guide, "Compute Capabilities" and "Application Compatibility".
    """
    return any(_runs(card, architecture) for architecture in re.split(r"[;\s]+", architectures.strip()))


def _runs(card: tuple[int, int], architecture: str) -> bool:
    found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture)
    if not found:  # a name of torch's, such as Hopper: where that is wrong the launch tells
        return bool(architecture)
    built = int(found[1]), int(found[2])
    if found[3] == "a":
        return card == built
    return card >= built and (card[0] == built[0] or bool(found[4]))


@constant
def too_old(device: torch.device) -> tuple[str, ...]:
    """Why no kernel of ours is made for this card; empty if they are."""
    if capability(device) >= OLDEST_CARD:
        return ()
    oldest, found = (".".join(map(str, pair)) for pair in (OLDEST_CARD, capability(device)))
    return (f"expected compute capability {oldest} or newer, got {found} of {device}",)


@constant
def lacks(device: torch.device) -> tuple[str, ...]:
    """Why the library's kernels do not run on this card; empty if they do."""
    if not arch_list():
        return ("libatrous.so is built without CUDA: build it again with a CUDA build of torch and nvcc",)
    old = too_old(device)
    if old or image_fits(capability(device), arch_list()):
        return old
    here = ".".join(map(str, capability(device)))
    wanted = {"9.0": "9.0a"}.get(here, here)  # what csrc/cuda/conv/sm90.cuh needs
    remedy = f"build it again with TORCH_CUDA_ARCH_LIST={wanted}"
    return (f"libatrous.so is built for {arch_list()}, {device} is {here}: {remedy}",)
