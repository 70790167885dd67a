"""Makes AddressSanitizer report accesses to the memory that oracle.Margins leaves around a tensor.

That memory belongs to the tensor's allocation, so that by itself the sanitizer would allow them.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from unittest import mock

import oracle
from torch import Tensor

RUNTIME = ctypes.CDLL(None)  # the process, and so the preloaded library


def mark(action: str, address: int, size: int) -> None:
    getattr(RUNTIME, f"__asan_{action}_memory_region")(ctypes.c_void_p(address), ctypes.c_size_t(size))


@contextlib.contextmanager
def poisoned_margins() -> Iterator[None]:
    """Does nothing under another sanitizer."""
    if not hasattr(RUNTIME, "__asan_poison_memory_region"):
        yield
        return
    place, check = oracle.Margins.place, oracle.Margins.check

    def poisoning(self, tensor: Tensor, margin: int = 67) -> Tensor:
        inside = place(self, tensor, margin)
        if tensor.numel():
            memory, _ = self.guards[-1]
            size = margin * memory.element_size()
            for address in (memory.data_ptr(), memory.data_ptr() + memory.nbytes - size):
                mark("poison", address, size)
        return inside

    def allowing(self) -> None:
        for memory, _ in self.guards:
            mark("unpoison", memory.data_ptr(), memory.nbytes)
        check(self)

    with mock.patch.multiple(oracle.Margins, place=poisoning, check=allowing):
        yield
