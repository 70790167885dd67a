"""GPUs that libatrous.so was built for, from the build information in atrous._C."""

from __future__ import annotations

import importlib
import re
from functools import lru_cache

import torch

from ..core.torch_compat import constant

MIN_CAPABILITY = (8, 0)  # oldest compute capability that our kernels support, in Triton and in C++


@lru_cache
def arch_list() -> str:
    """TORCH_CUDA_ARCH_LIST of the build; empty if it was built without CUDA, or not at all."""
    try:
        return importlib.import_module("..._C", __name__).build()["arch_list"]
    except ImportError:
        return ""


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@lru_cache
def image_fits(gpu: tuple[int, int], architectures: str) -> bool:
    """True if code for one of these architectures ("8.0;9.0a;12.0+PTX") runs on a GPU of this compute capability.

    Code for x.y runs on x.z, z >= y; with "a" on x.y alone; PTX is compiled for any newer GPU.
    Source: CUDA C++ Programming Guide, "Compute Capabilities" and "Application Compatibility".
    """
    return any(_runs(gpu, architecture) for architecture in re.split(r"[;\s]+", architectures.strip()))


def _runs(gpu: tuple[int, int], architecture: str) -> bool:
    parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture)
    if not parts:  # a name that torch accepts, such as Hopper: if it does not fit, the launch raises
        return bool(architecture)
    built = int(parts[1]), int(parts[2])
    if parts[3] == "a":
        return gpu == built
    return gpu >= built and (gpu[0] == built[0] or bool(parts[4]))


@constant
def too_old(device: torch.device) -> tuple[str, ...]:
    """The reason why our kernels do not support this GPU; empty if they do."""
    if capability(device) >= MIN_CAPABILITY:
        return ()
    oldest, actual = (".".join(map(str, pair)) for pair in (MIN_CAPABILITY, capability(device)))
    return (f"expected compute capability {oldest} or newer, got {actual} of {device}",)


@constant
def native_reasons(device: torch.device) -> tuple[str, ...]:
    """The reason why the kernels of libatrous.so do not run on this GPU; empty if they do."""
    if not arch_list():
        return ("libatrous.so is built without CUDA: build it again with a CUDA build of torch and nvcc",)
    reasons = too_old(device)
    if reasons or image_fits(capability(device), arch_list()):
        return reasons
    here = ".".join(map(str, capability(device)))
    wanted = {"9.0": "9.0a"}.get(here, here)  # csrc/cuda/conv/sm90.cuh needs 9.0a
    remedy = f"build it again with TORCH_CUDA_ARCH_LIST={wanted}"
    return (f"libatrous.so is built for {arch_list()}, {device} is {here}: {remedy}",)
