"""Where the programs of a launch count who is the last: integers that are zero before a launch and after it.

The last program to arrive sets its counter back (`arrive`), so that no fill has to precede a launch: it would be a
node of its own in a CUDA graph. A device has one array of zeros, of which every stream has a part: launches of one
stream follow one another. A launch that a graph captures gets a part that nobody else ever has, since a graph is
replayed on any stream: graphs may run beside one another and beside calls, and CUDA runs one graph's replays one after
another. A graph that is instantiated twice, or that is a node of two others, must not run beside itself.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl
from torch import Tensor

COUNTERS = 1 << 22  # of a device, 16 MiB: 36 launches of 132 counters in each of 720 graphs, or what `tune` captures
GRANULE = 32  # counters of one 128-byte line: parts are aligned, and no two share a line


class Zeros:
    """The array of one device and its parts."""

    def __init__(self, device: torch.device):
        self.array = _allocate(device)
        self.used = 0
        self.streams: dict[int, Tensor] = {}

    def part(self, count: int) -> Tensor | None:
        """A part that nobody has; None where the array is used up."""
        first, end = self.used, self.used + -(-count // GRANULE) * GRANULE
        if end > self.array.numel():
            return None
        self.used = end
        return self.array[first:end]

    def of_stream(self, stream: int, count: int) -> Tensor | None:
        """The stream's part; where it is too small a new one, of twice the size."""
        found = self.streams.get(stream)
        if found is None or found.numel() < count:
            larger = self.part(max(2 * count, 8 * GRANULE))
            found = larger if larger is not None else self.part(count)
            if found is not None:
                self.streams[stream] = found
        return found


_devices: dict[torch.device, Zeros] = {}
_lock = threading.Lock()


def counters(device: torch.device, count: int) -> Tensor:
    """At least `count` zeros, int32, for one launch on the current stream, which leaves them zero.

    Filled for this launch where there are no others: in a capture before any call, or when the array is used up.
    """
    capturing = _capturing(device)
    with _lock:
        zeros = _devices.get(device)
        if zeros is None and not capturing:
            zeros = _devices[device] = Zeros(device)
        found = None
        if zeros is not None:
            stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
            found = zeros.part(count) if capturing else zeros.of_stream(stream, count)
    return torch.zeros(count, dtype=torch.int32, device=device) if found is None else found


def _capturing(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):  # the question is about the current device's stream
        return torch.cuda.is_current_stream_capturing()


def _allocate(device: torch.device) -> Tensor:
    """The zeros, ready for every stream. On a GPU by a thread and a stream of their own: the caller may be allocating
    from the memory pool of a graph that is being warmed up, which must not own what outlives it."""
    if device.type != "cuda":
        return torch.zeros(COUNTERS, dtype=torch.int32, device=device)

    def fill() -> Tensor:
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            zeros = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
        stream.synchronize()
        return zeros

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(fill).result()


@triton.jit
def arrive(arrived_ptr, programs):
    """Whether this program is the last of so many to come here; what the others stored before is then visible. The last
    one sets the counter back to zero for the next launch."""
    tl.debug_barrier()  # the stores of all threads come before the one thread's atomic
    last = tl.atomic_add(arrived_ptr, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(arrived_ptr, 0)
    return last
