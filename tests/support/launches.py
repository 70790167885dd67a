"""A small launch of every CUDA kernel, of Triton in every config: the first thing to run on a GPU, and what the
sanitizers see.

    python launches.py [--one]      --one: of each kernel and way to address the first launch, for memcheck

Each is named before it runs and waited for, so that the last line names the one that hangs or ends the process. One
that fails does not end the run; the exit status is then 1. After an illegal access nothing runs in the process any
more: the launches behind it run in a new one. Those in C++ are left out where the library is not built for
this GPU, and under Triton's interpreter. Values are what the tests check; here only that all of an output is written.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from atrous import testing
from atrous.ops import device_support, triton_impl
from atrous.triton_kernels.conv import configs, statistics
from atrous.triton_kernels.conv import forward as conv
from atrous.triton_kernels.conv.problem import conv_key

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPE = torch.float16
NHWC, NCHW = torch.channels_last, torch.contiguous_format
WHOLE = (1, 1), (2, 2), (2, 2), 1  # stride, padding, dilation, groups
Outputs = torch.Tensor | tuple[torch.Tensor, ...]
Launch = tuple[str, Callable[[], Outputs]]  # what it is called, and the call


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
    far = (1, 1), (8, 8), (8, 8), 1  # a halo wider than the map; the last channels do not fill a step
    yield draw(2, 72, 9, 11, memory_format=NHWC), draw(72, 72, 3, 3), far, NHWC, None
    yield draw(2, 31, 9, 11), draw(33, 31, 1, 3), ((2, 1), (0, 5), (1, 5), 1), NCHW, None
    yield draw(2, 32, 9, 11, memory_format=NHWC), draw(32, 8, 3, 3), (*WHOLE[:3], 4), NHWC, None
    for layout in (NHWC, NCHW):
        for config in configs.DEPTHWISE["last" if layout == NHWC else "planes"]:
            yield draw(2, 12, 9, 11, memory_format=layout), draw(24, 1, 3, 3), (*WHOLE[:3], 12), layout, config


def ending(channels: int, size: torch.Size, layout: torch.memory_format, kind: str):
    vectors = [torch.rand(channels, device=DEVICE) + 0.5 for _ in range(4)]
    slope, seed = torch.rand(channels, device=DEVICE), torch.tensor([1, 2], device=DEVICE)
    return *vectors, 1e-5, kind, 0.1, 0.3, slope, seed, draw(*size, memory_format=layout), False


# Of each layout a batch whose reductions one program makes, and one that several share (reduction_plan.grid).
MAPS = [((batch, 16, 9, 11), NHWC) for batch in (2, 9)]
MAPS += [((batch, *rest), NCHW) for *batches, rest in ((2, 9, (16, 4, 8)), (29, 45, (5, 7, 7))) for batch in batches]


def pointwise(language: str, primitive: Callable[[str], Callable]) -> Iterator[Launch]:
    """The kernels without a convolution, forward and backward."""
    for size, layout in MAPS:
        for kind in ("relu", "tensor", "random"):
            z = draw(*size, memory_format=layout)
            label = f"{language} %s {size} {'NHWC' if layout == NHWC else 'NCHW'} {kind}"
            call = z, *ending(size[1], z.shape, layout, kind)
            backward, sums = (torch.randn_like(z), *call, 0.5), torch.randn(3, size[1], device=DEVICE)
            yield label % "epilogue", partial(primitive("_epilogue"), *call, 0.0)
            yield label % "epilogue with dropout", partial(primitive("_epilogue"), *call, 0.5)
            yield label % "statistics", partial(primitive("_statistics"), z)
            yield label % "epilogue_reduce", partial(primitive("_epilogue_reduce"), *backward)
            run = partial(primitive("_epilogue_backward"), *backward[:2], sums, True, True, *backward[2:])
            yield label % "epilogue_backward", run


def triton() -> Iterator[Launch]:
    for x, w, geometry, layout, config in convolutions():
        size = torch.conv2d(x.to("meta"), w.to("meta"), None, *geometry).shape
        arguments = ending(w.shape[0], size, layout, "tensor" if config else "random")
        label = f"triton %s {tuple(x.shape)} * {tuple(w.shape)} {config.describe() if config else 'predicted config'}"
        run = partial(conv.conv_epilogue, x, w, None, *geometry, *arguments, memory_format=layout, config=config)
        yield label % "conv_epilogue", run
        if config is None or config.waves or w.shape[1] == 1:
            fits = config if config and config.waves and config.elements <= 64 else None
            run = partial(statistics.conv_statistics, x, w, None, *geometry, memory_format=layout, config=fits)
            yield label % "conv_statistics", run
    yield from pointwise("triton", triton_impl.pointwise)


# What _conv_tile takes; without a name the predicted one.
TILES = ("", "wgmma-256x128", "wgmma-128x128", "wgmma-128x64", "mma-128x128", "mma-128x64", "mma-64x64")


def tiles() -> tuple[str, ...]:
    """Those that the library has for this GPU."""
    device = torch.device("cuda", torch.cuda.current_device())
    wgmma = device_support.capability(device) == (9, 0) and "9.0a" in device_support.arch_list()
    return tuple(tile for tile in TILES if wgmma or not tile.startswith("wgmma"))


def native() -> Iterator[Launch]:
    """libatrous.so: convolutions with splits, in large tiles and in each tile that can have them, of a stem, and one
    that it leaves to torch."""
    calls = [
        (2, 64, 9, 72, 3, 1),
        (8, 64, 56, 64, 3, 1),
        (8, 96, 56, 136, 3, 1),
        (2, 3, 30, 64, 7, 1),
        (2, 32, 9, 32, 3, 4),
    ]
    for tile, (images, channels, side, out, kernel, groups) in itertools.product(tiles(), calls):
        if tile and (channels < 4 or groups > 1):  # which no tile that has a name computes
            continue
        x, w = draw(images, channels, side, side, memory_format=NHWC), draw(out, channels // groups, kernel, kernel)
        geometry = (1, 1), (kernel // 2,) * 2, (1, 1), groups
        arguments = ending(out, torch.Size((images, out, side, side)), NHWC, "tensor")
        run = partial(in_tile, tile, torch.ops.atrous._conv_epilogue, x, w, None, *geometry, *arguments, 0.0)
        yield f"native conv_epilogue {tuple(x.shape)} * {tuple(w.shape)} {tile or 'predicted tile'}", run
    yield from pointwise("native", lambda name: getattr(torch.ops.atrous, name))


def in_tile(tile: str, run: Callable[..., Outputs], *arguments) -> Outputs:
    torch.ops.atrous._conv_tile(tile)
    try:
        return run(*arguments)
    finally:
        torch.ops.atrous._conv_tile("")


def failure(run: Callable[[], Outputs]) -> str:
    """Why a launch failed; empty if it did not."""
    try:
        found = run()
        outputs = found if isinstance(found, tuple) else (found,)
        written = all(bool(output.isfinite().all()) for output in outputs)  # which waits for the kernel
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if written else "not all of its output is finite"


def main(launches: Iterable[Launch], done: int = 0, failed: int = 0) -> int:
    """done, failed: of an earlier process, which did so many launches."""
    for label, run in itertools.islice(launches, done, None):
        print(label, end=": ", flush=True)
        reason = failure(run)
        print(f"FAILED, {reason}" if reason else "done", flush=True)
        done, failed = done + 1, failed + bool(reason)
        if reason and testing.gpu_lost():
            go_on(done, failed)
    print(f"{done} launches, {failed} failed")
    return int(failed > 0)


def go_on(done: int, failed: int) -> None:
    """Becomes a new process that begins with the next launch."""
    options = [word for word in sys.argv[1:] if word == "--one"]
    counts = ["--done", str(done), "--failed", str(failed)]
    os.execv(sys.executable, [sys.executable, "-u", __file__, *options, *counts])


# Of a label: a convolution's tile, and a pass's map and activation.
TILE, MAP = re.compile(r"\d+x\d+x\d+B w\d+ s\d+|(?<=mma-)\d+x\d+"), re.compile(r"\(.*?\)|relu|tensor|random")


def one(launches: Iterable[Launch]) -> Iterator[Launch]:
    """The first of those whose labels differ in a tile, a map or an activation alone. Of a convolution each map stays:
    how it is addressed hangs on that, and the first ones are dilated, at an edge."""
    seen = set()
    for label, run in launches:
        kernel = TILE.sub("", label) if "*" in label else MAP.sub("", label)
        if kernel not in seen:
            seen.add(kernel)
            yield label, run


def every() -> Iterator[Launch]:
    yield from triton()
    if DEVICE == "cuda" and not device_support.lacks(torch.device("cuda", torch.cuda.current_device())):
        yield from native()


if __name__ == "__main__":
    if DEVICE == "cpu":
        import quick_interpreter

        quick_interpreter.quicken()
    parser = argparse.ArgumentParser(description="A small launch of every CUDA kernel.")
    parser.add_argument("--one", action="store_true", help="of each kernel and way to address the first launch")
    parser.add_argument("--done", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--failed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.exit(main(one(every()) if args.one else every(), args.done, args.failed))
