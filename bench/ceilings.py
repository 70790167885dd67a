"""The processor's ceilings, measured: multiply-adds a second of the fastest product, bytes a second of a copy."""

from __future__ import annotations

import functools

import torch

from atrous.core.torch_compat import onednn_convolution, onednn_pack
from atrous.tools import timing
from bench.subjects.subject import NHWC, Call, dtypes

CPU = torch.device("cpu")
SIDE = 1024  # rows and columns of the matrices
PIXELS, CHANNELS = 48, 512  # size of a 1x1 convolution, which is a product too
COPY = 2**28  # bytes: more than the caches hold


def candidates(dtype: torch.dtype) -> dict[str, tuple[Call, int]]:
    """Name -> call and its multiply-adds. torch's matrix product is not the fastest one on every processor."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    known: dict[str, tuple[Call, int]] = {"matmul": (lambda: a @ b, SIDE**3)}
    if onednn_convolution is not None:
        x = torch.randn(1, CHANNELS, PIXELS, PIXELS).to(dtype, memory_format=NHWC)
        weight, geometry = torch.randn(CHANNELS, CHANNELS, 1, 1).to(dtype), ([0, 0], [1, 1], [1, 1], 1)
        packed = onednn_pack(weight, *geometry, list(x.shape))
        call = lambda: onednn_convolution(x, packed, None, *geometry, "none", [], "")  # noqa: E731
        known["conv 1x1"] = call, PIXELS**2 * CHANNELS**2
    return known


@functools.cache
def fastest(dtype: torch.dtype, repeats: int = 15) -> tuple[Call, int, float]:
    """The fastest product: its call, its multiply-adds, and 1e9 of them a second in its best run."""
    known = [
        (call, macs, macs / min(timing.milliseconds(call, CPU) for _ in range(repeats)) / 1e6)
        for call, macs in candidates(dtype).values()
    ]
    return max(known, key=lambda product: product[2])


def measure(repeats: int = 15) -> dict[str, float]:
    """gmac_s_<dtype>: fastest(dtype). copy_gb_s: 1e9 bytes a second in the best run, read and written."""
    speeds = {f"gmac_s_{str(dtype).removeprefix('torch.')}": fastest(dtype)[2] for dtype in dtypes()}
    source = torch.ones(COPY // 4)
    target = torch.empty_like(source)
    best = min(timing.milliseconds(lambda: target.copy_(source), CPU) for _ in range(repeats))
    return {**speeds, "copy_gb_s": 2 * COPY / best / 1e6}
