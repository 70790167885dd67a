"""Arrival counters of launches: integers that are zero before a launch and zero again after it.

The last program to arrive resets its counter (`arrive`), so no fill precedes a launch: in a CUDA graph a fill would be
a node of its own. Each device has one pool of zeros. Launches on one stream run in order and share a slice of the pool;
each captured launch gets a slice that is never handed out again, since a graph may be replayed on any stream, beside
other graphs and calls, while CUDA runs the replays of one graph one after another. A graph that is instantiated twice,
or that is a child of two other graphs, must not run concurrently with itself.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl
from torch import Tensor

POOL_SIZE = 1 << 22  # per device, 16 MiB: 36 launches of 132 counters in each of 720 graphs, or what `tune` captures
GRANULE = 32  # counters of one 128-byte line: slices are aligned and never share a line


class CounterPool:
    """The zeros of one device and the slices handed out of them."""

    def __init__(self, device: torch.device):
        self.array = _allocate(device)
        self.used = 0
        self.streams: dict[int, Tensor] = {}

    def take(self, count: int) -> Tensor | None:
        """A new slice of at least `count` counters; None if the pool is used up."""
        first, end = self.used, self.used + -(-count // GRANULE) * GRANULE
        if end > self.array.numel():
            return None
        self.used = end
        return self.array[first:end]

    def for_stream(self, stream: int, count: int) -> Tensor | None:
        """The stream's slice; if it is too small, a new one of twice the size, or of `count` if that does not fit."""
        current = self.streams.get(stream)
        if current is None or current.numel() < count:
            larger = self.take(max(2 * count, 8 * GRANULE))
            current = larger if larger is not None else self.take(count)
            if current is not None:
                self.streams[stream] = current
        return current


_pools: dict[torch.device, CounterPool] = {}
_lock = threading.Lock()


def counters(device: torch.device, count: int) -> Tensor:
    """At least `count` int32 zeros for one launch on the current stream, which must leave them zero.

    A new tensor is filled for this launch if the pool cannot serve it: it is used up, or a capture precedes any call.
    """
    capturing = _capturing(device)
    with _lock:
        pool = _pools.get(device)
        if pool is None and not capturing:
            pool = _pools[device] = CounterPool(device)
        zeros = None
        if pool is not None:
            stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
            zeros = pool.take(count) if capturing else pool.for_stream(stream, count)
    return torch.zeros(count, dtype=torch.int32, device=device) if zeros is None else zeros


def _capturing(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):  # torch asks about the current device's stream
        return torch.cuda.is_current_stream_capturing()


def _allocate(device: torch.device) -> Tensor:
    """The zeros of a pool, visible to every stream.

    On a GPU a thread allocates them on its own stream: the caller may be allocating from the memory pool of a graph
    that is being warmed up, which must not own memory that outlives it.
    """
    if device.type != "cuda":
        return torch.zeros(POOL_SIZE, dtype=torch.int32, device=device)

    def fill() -> Tensor:
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            zeros = torch.zeros(POOL_SIZE, dtype=torch.int32, device=device)
        stream.synchronize()
        return zeros

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(fill).result()


@triton.jit
def arrive(arrived_ptr, programs):
    """True in the last of `programs` programs to call this; it then sees what the others stored before.

    The last program resets the counter to zero for the next launch.
    """
    tl.debug_barrier()  # the stores of all threads come before the one thread's atomic
    last = tl.atomic_add(arrived_ptr, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(arrived_ptr, 0)
    return last
