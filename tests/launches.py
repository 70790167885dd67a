"""A small launch of every CUDA kernel, of Triton in every config, for compute-sanitizer: `.ci/gpu right` runs it.

Those in C++ are left out where the library is not built for the card, and under Triton's interpreter.
Values are what the tests check; here only that each launch ends and writes all of its output.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from unittest import mock

import torch

from atrous import ops_build, ops_cuda
from atrous.triton_kernels import configs, conv, reduction_plan, statistics
from atrous.triton_kernels.describe import conv_key

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPE = torch.float16
NHWC, NCHW = torch.channels_last, torch.contiguous_format
WHOLE = (1, 1), (2, 2), (2, 2), 1  # stride, padding, dilation, groups


def draw(*size: int, memory_format: torch.memory_format = NCHW) -> torch.Tensor:
    return torch.randn(size, device=DEVICE).to(DTYPE).contiguous(memory_format=memory_format)


def convolutions():
    """x, w, geometry, layout, config: every config on a map that its tiles do not divide, and every way to address."""
    for tile in configs.CONV:
        splits = [tile._replace(splits=2)] if tile.elements <= 64 else []
        for config in (tile, tile._replace(waves=2), *splits):
            x, w = draw(2, 64, 9, 11, memory_format=NHWC), draw(72, 64, 3, 3)
            if not configs.conv_reasons(conv_key(x, w, *WHOLE, NHWC), config):  # not every card takes every config
                yield x, w, WHOLE, NHWC, config
    halves = (2, 2), (1, 1), (1, 1), 1
    yield draw(2, 64, 10, 12, memory_format=NHWC), draw(72, 64, 3, 3), halves, NHWC, None
    yield draw(2, 3, 9, 11, memory_format=NHWC), draw(33, 3, 7, 7), ((2, 2), (3, 3), (1, 1), 1), NHWC, None
    yield draw(2, 31, 9, 11), draw(33, 31, 1, 3), ((2, 1), (0, 5), (1, 5), 1), NCHW, None
    yield draw(2, 32, 9, 11, memory_format=NHWC), draw(32, 8, 3, 3), (*WHOLE[:3], 4), NHWC, None
    for layout in (NHWC, NCHW):
        for config in configs.DEPTHWISE["last" if layout == NHWC else "planes"]:
            yield draw(2, 12, 9, 11, memory_format=layout), draw(24, 1, 3, 3), (*WHOLE[:3], 12), layout, config


def ending(channels: int, size: torch.Size, layout: torch.memory_format, kind: str):
    vectors = [torch.rand(channels, device=DEVICE) + 0.5 for _ in range(4)]
    slope, seed = torch.rand(channels, device=DEVICE), torch.tensor([1, 2], device=DEVICE)
    return *vectors, 1e-5, kind, 0.1, 0.3, slope, seed, draw(*size, memory_format=layout), False


def pointwise(primitive: Callable[[str], Callable]) -> int:
    """The kernels without a convolution, of one language; returns how many launches."""
    count = 0
    for size, layout in (((9, 16, 9, 11), NHWC), ((2, 16, 4, 8), NCHW), ((29, 5, 7, 7), NCHW)):
        for kind in ("relu", "tensor", "random"):
            z = draw(*size, memory_format=layout)
            arguments = ending(size[1], z.shape, layout, kind)
            for dropout in (0.0, 0.5):
                assert primitive("_epilogue")(z, *arguments, dropout).isfinite().all()
            count += 2 + training(primitive, z, *arguments)
    return count


def training(primitive: Callable[[str], Callable], z: torch.Tensor, *arguments) -> int:
    """The kernels of a backward pass, by one program and by several, with dropout."""
    for least in (reduction_plan.REDUCTION_STEPS, 1):
        with mock.patch.object(reduction_plan, "REDUCTION_STEPS", least):
            mean, var = primitive("_statistics")(z)
            call = torch.randn_like(z), z, mean, var, *arguments[2:], 0.5
            sums = primitive("_epilogue_reduce")(*call)
            found = primitive("_epilogue_backward")(*call[:2], sums, True, True, *call[2:])
            assert all(t.isfinite().all() for t in (mean, var, sums, *found))
    return 6


def launches() -> int:
    """Runs them all; returns how many."""
    count = 0
    for x, w, geometry, layout, config in convolutions():
        size = torch.conv2d(x.to("meta"), w.to("meta"), None, *geometry).shape
        arguments = ending(w.shape[0], size, layout, "tensor" if config else "random")
        assert conv.conv_epilogue(
            x, w, None, *geometry, *arguments, memory_format=layout, config=config
        ).isfinite().all()  # fmt: skip
        count += 1
        if config is None or config.waves or w.shape[1] == 1:
            fits = config if config and config.waves and config.elements <= 64 else None
            z, mean, var = statistics.conv_statistics(x, w, None, *geometry, memory_format=layout, config=fits)
            assert all(t.isfinite().all() for t in (z, mean, var))
            count += 1
    return count + pointwise(ops_cuda.pointwise)


def native() -> int:
    """The same of libatrous.so: convolutions in shares, in large tiles, of a stem, and one that it leaves to torch."""
    calls = [
        (2, 64, 9, 72, 3, 1),
        (8, 64, 56, 64, 3, 1),
        (8, 96, 56, 136, 3, 1),
        (2, 3, 30, 64, 7, 1),
        (2, 32, 9, 32, 3, 4),
    ]
    for images, channels, side, out, kernel, groups in calls:
        x, w = draw(images, channels, side, side, memory_format=NHWC), draw(out, channels // groups, kernel, kernel)
        geometry = (1, 1), (kernel // 2,) * 2, (1, 1), groups
        arguments = ending(out, torch.Size((images, out, side, side)), NHWC, "tensor")
        assert torch.ops.atrous._conv_epilogue(x, w, None, *geometry, *arguments, 0.0).isfinite().all()
    return len(calls) + pointwise(lambda name: getattr(torch.ops.atrous, name))


if __name__ == "__main__":
    if DEVICE == "cpu":
        import quick_interpreter

        quick_interpreter.quicken()
    built = DEVICE == "cuda" and not ops_build.lacks(torch.device("cuda", torch.cuda.current_device()))
    print(f"{launches() + (native() if built else 0)} launches")
