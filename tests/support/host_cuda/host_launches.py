"""Runs each CUDA kernel once on the host, under a preloaded sanitizer: `python host_launches.py LIBRARY [OP]`.

Small tensors in both layouts, with whole and partial vectors, several blocks and several parts of a reduction.
"""

import sys

import torch

torch.set_num_threads(1)
torch.ops.load_library(sys.argv[1])
ops, only = torch.ops.atrous_host, sys.argv[2:]


def epilogue_of(z: torch.Tensor, kind: str, dropout: float) -> list:
    channels = z.shape[1]
    mean, gamma, beta, slope = torch.randn(4, channels)
    seed = torch.tensor([1, 2])
    return [mean, mean.abs() + 0.5, gamma, beta, slope, torch.randn_like(z), kind, 1e-5, 0.1, 0.3, False, seed, dropout]


def calls(z: torch.Tensor, kind: str, dropout: float) -> dict:
    grad, e = torch.randn_like(z), epilogue_of(z, kind, dropout)
    needs = True, True, True, True
    means = torch.randn(2, z.shape[1], dtype=torch.float64 if z.dtype == torch.float64 else torch.float32)
    return {
        "_epilogue": lambda: ops._epilogue(z, *e),
        "_statistics": lambda: ops._statistics(z),
        "_statistics_epilogue": lambda: ops._statistics_epilogue(z, None, None, *e[2:]),
        "_epilogue_reduce": lambda: ops._epilogue_reduce(grad, z, *e),
        "_epilogue_backward": lambda: ops._epilogue_backward(grad, z, means, True, True, *e),
        "_epilogue_gradients": lambda: ops._epilogue_gradients(grad, z, *needs, *e),
    }


nchw, nhwc = torch.contiguous_format, torch.channels_last
for dtype, size, layout, kind, dropout in (
    (torch.float32, (2, 3, 5, 7), nchw, "tensor", 0.0),
    (torch.float64, (2, 3, 5, 7), nhwc, "random", 0.5),
    (torch.float16, (65, 2, 3, 5), nchw, "relu", 0.5),
    (torch.bfloat16, (2, 264, 4, 4), nhwc, "number", 0.0),
):
    z = torch.randn(size).to(dtype).contiguous(memory_format=layout)
    for name, call in calls(z, kind, dropout).items():
        if not only or name in only:
            call()
if not only or "_conv_epilogue" in only:  # with split-K
    x, y = (torch.randn(1, c, 4, 5).half().contiguous(memory_format=nhwc) for c in (136, 16))
    geometry = (1, 1), (1, 1), (1, 1), 1
    ops._conv_epilogue(x, torch.randn(16, 136, 3, 3).half(), None, *geometry, *epilogue_of(y, "tensor", 0.0))
print("all launched")
