"""A stand-in for the CUDA driver, to run Triton's own path from a launch to the driver without a GPU.

Triton's driver module, launchers and compiler are the real ones; only libcuda.so.1 is ours (standin_driver.c). A kernel
is compiled or found in Triton's cache, its cubin is loaded, its descriptors are encoded and its arguments are packed;
the driver refuses what CUDA's refuses, and runs nothing. Tensors on the GPU have no values: standin_torch.py.

    with standin.gpu(90) as recorded: ...  in this process
    standin_site/                          in a whole process and its child processes
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import standin_torch
import triton
from triton import knobs
from triton.runtime import build, driver


class Chip(NamedTuple):
    """The properties of a GPU that compiled code depends on. shared: bytes of shared memory that a block may use."""

    name: str
    multiprocessors: int
    shared: int


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and the data sheets.
CHIPS = {
    90: Chip("H100", 132, 227 << 10), 80: Chip("A100", 108, 163 << 10), 100: Chip("B200", 148, 227 << 10),
    86: Chip("A40", 84, 99 << 10), 89: Chip("L40S", 142, 99 << 10), 120: Chip("RTX PRO 6000", 188, 99 << 10),
}  # fmt: skip
ORDINALS = {capability: ordinal for ordinal, capability in enumerate(CHIPS)}  # Triton caches kernels by device

_build, _cache_manager = build._build, build.get_cache_manager


@dataclass
class Recorded:
    """The kernels and modules that launches needed. kernels, modules: keys of Triton's cache; modules are Triton's own
    in C (cuda_utils, the launchers). compiled: names of those that were not in it. calls: of triton.compile, one per
    entry of the cache in memory."""

    kernels: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    compiled: list[str] = field(default_factory=list)
    calls: int = 0

    def listen(self, *, src, metadata, metadata_group, times, cache_hit) -> None:
        self.calls += 1
        self.kernels.add(metadata["hash"])
        if not cache_hit:
            self.compiled.append(metadata["name"])

    def module(self, key: str):
        self.modules.add(key)
        return _cache_manager(key)

    def build(self, name: str, *arguments):
        self.compiled.append(name)
        return _build(name, *arguments)

    def as_json(self) -> str:
        record = {"kernels": sorted(self.kernels), "modules": sorted(self.modules), "compiled": self.compiled}
        return json.dumps({**record, **library().counts})


class Library:
    """Our libcuda.so.1, built once per process in a folder that Triton links its modules against."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="standin-")
        path = Path(self.folder.name, "libcuda.so.1")
        headers = Path(triton.__file__).parent / "backends/nvidia/include"
        command = [*shlex.split(os.environ.get("CC", "cc")), "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
        source = Path(__file__).with_name("standin_driver.c")
        subprocess.run([*command, f"-I{headers}", f"-Wl,-soname,{path.name}", str(source), "-o", str(path)], check=True)
        knobs.nvidia.libcuda_path = self.folder.name
        self.calls = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)

    def use(self, capability: int) -> None:
        self.calls.standin_chip(capability, CHIPS[capability].multiprocessors, CHIPS[capability].shared)

    @property
    def counts(self) -> dict[str, int]:
        """Number of cubins loaded, kernels launched and descriptors encoded so far in this process."""
        return {name: getattr(self.calls, f"standin_{name}")() for name in ("loaded", "launched", "encoded")}


_library: Library | None = None


def library() -> Library:
    global _library
    _library = _library or Library()
    return _library


@contextlib.contextmanager
def gpu(capability: int) -> Iterator[Recorded]:
    """In this block torch and Triton find one GPU of that compute capability; yields the record of its launches."""
    library().use(capability)
    recorded, before = Recorded(), (driver._active, knobs.compilation.listener)
    device = standin_torch.device(ORDINALS[capability], capability, CHIPS[capability])
    modules = mock.patch.multiple(build, _build=recorded.build, get_cache_manager=recorded.module)
    with device, modules:
        from triton.backends.nvidia.driver import CudaDriver

        driver._active, knobs.compilation.listener = CudaDriver(), recorded.listen
        try:
            yield recorded
        finally:
            driver._active, knobs.compilation.listener = before
