"""Launches every CUDA kernel on small tensors, Triton's in every config: a smoke test for a GPU and for sanitizers.

    python launches.py [--one]      --one: only the first launch of each kernel and addressing mode, for memcheck

Each launch is named before it runs and waited for, so the last line names the one that hangs or kills the process. A
failed launch does not end the run; the exit status is then 1. After an illegal access nothing runs in the process any
more, so the remaining launches run in a new one. C++ launches are left out if the library is not built for this GPU,
and under Triton's interpreter. Only that outputs are finite is checked; the tests check values.
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
from atrous.backends import aten
from atrous.core.spec import Epilogue, Spec, flat
from atrous.ops import device_support, triton_impl
from atrous.triton_kernels.conv import configs, statistics
from atrous.triton_kernels.conv import forward as conv
from atrous.triton_kernels.conv.problem import conv_key

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPE = torch.float16
NHWC, NCHW = torch.channels_last, torch.contiguous_format
WHOLE = Spec((1, 1), (2, 2), (2, 2))
Outputs = torch.Tensor | tuple[torch.Tensor, ...]
Launch = tuple[str, Callable[[], Outputs]]  # label, call


def draw(*size: int, memory_format: torch.memory_format = NCHW) -> torch.Tensor:
    return torch.randn(size, device=DEVICE).to(DTYPE).contiguous(memory_format=memory_format)


def convolutions():
    """x, w, spec, layout, config: every config, on a size that its tiles do not divide; every addressing mode."""
    for tile in configs.CONV:
        splits = [tile._replace(splits=2)] if tile.accumulators <= 64 else []
        for config in (tile, tile._replace(waves=2), *splits):
            x, w = draw(2, 64, 9, 11, memory_format=NHWC), draw(72, 64, 3, 3)
            if not configs.conv_reasons(conv_key(x, w, WHOLE, NHWC), config):  # not every GPU runs every config
                yield x, w, WHOLE, NHWC, config
    halves = Spec((2, 2), (1, 1))
    yield draw(2, 64, 10, 12, memory_format=NHWC), draw(72, 64, 3, 3), halves, NHWC, None
    yield draw(2, 3, 9, 11, memory_format=NHWC), draw(33, 3, 7, 7), Spec((2, 2), (3, 3)), NHWC, None
    far = Spec((1, 1), (8, 8), (8, 8))  # a halo wider than the map; the last channels do not fill a step
    yield draw(2, 72, 9, 11, memory_format=NHWC), draw(72, 72, 3, 3), far, NHWC, None
    yield draw(2, 31, 9, 11), draw(33, 31, 1, 3), Spec((2, 1), (0, 5), (1, 5)), NCHW, None
    yield draw(2, 32, 9, 11, memory_format=NHWC), draw(32, 8, 3, 3), WHOLE._replace(groups=4), NHWC, None
    for layout in (NHWC, NCHW):
        for config in configs.DEPTHWISE["nhwc" if layout == NHWC else "nchw"]:
            yield draw(2, 12, 9, 11, memory_format=layout), draw(24, 1, 3, 3), WHOLE._replace(groups=12), layout, config


def epilogue(channels: int, size: torch.Size, layout: torch.memory_format, kind: str) -> Epilogue:
    vectors = [torch.rand(channels, device=DEVICE) + 0.5 for _ in range(4)]
    slope, seed = torch.rand(channels, device=DEVICE), torch.tensor([1, 2], device=DEVICE)
    return Epilogue(*vectors, slope, draw(*size, memory_format=layout), kind, 1e-5, 0.1, 0.3, seed=seed)


# For each layout a batch reduced by one program per tile, and one by several (reduction_plan.grid).
SIZES = [((batch, 16, 9, 11), NHWC) for batch in (2, 9)]
SIZES += [((batch, *rest), NCHW) for *batches, rest in ((2, 9, (16, 4, 8)), (29, 45, (5, 7, 7))) for batch in batches]


def pointwise(language: str, primitive: Callable[[str], Callable]) -> Iterator[Launch]:
    """Launches of the kernels without a convolution, forward and backward."""
    for size, layout in SIZES:
        for kind in ("relu", "tensor", "random"):
            z = draw(*size, memory_format=layout)
            label = f"{language} %s {size} {'NHWC' if layout == NHWC else 'NCHW'} {kind}"
            e = epilogue(size[1], z.shape, layout, kind)
            dropping, grad = e._replace(dropout=0.5), torch.randn_like(z)
            sums = torch.randn(3, size[1], device=DEVICE)
            yield label % "epilogue", partial(primitive("_epilogue"), z, e)
            yield label % "epilogue with dropout", partial(primitive("_epilogue"), z, dropping)
            yield label % "statistics", partial(primitive("_statistics"), z)
            yield label % "epilogue_reduce", partial(primitive("_epilogue_reduce"), grad, z, dropping)
            run = partial(primitive("_epilogue_backward"), grad, z, sums, True, True, dropping)
            yield label % "epilogue_backward", run


def triton() -> Iterator[Launch]:
    for x, w, spec, layout, config in convolutions():
        size = torch.conv2d(x.to("meta"), w.to("meta"), None, *spec).shape
        e = epilogue(w.shape[0], size, layout, "tensor" if config else "random")
        label = f"triton %s {tuple(x.shape)} * {tuple(w.shape)} {config.describe() if config else 'predicted config'}"
        run = partial(conv.conv_epilogue, x, w, None, spec, e, memory_format=layout, config=config)
        yield label % "conv_epilogue", run
        if config is None or config.waves or w.shape[1] == 1:
            fitting = config if config and config.waves and config.accumulators <= 64 else None
            run = partial(statistics.conv_statistics, x, w, None, spec, memory_format=layout, config=fitting)
            yield label % "conv_statistics", run
    yield from pointwise("triton", triton_impl.launchers().__getitem__)


# Tile names of _conv_tile; "" is the predicted tile.
TILES = ("", "wgmma-256x128", "wgmma-128x128", "wgmma-128x64", "mma-128x128", "mma-128x64", "mma-64x64")


def tiles() -> tuple[str, ...]:
    """The tiles that the library has for this GPU."""
    device = torch.device("cuda", torch.cuda.current_device())
    wgmma = device_support.capability(device) == (9, 0) and "9.0a" in device_support.arch_list()
    return tuple(tile for tile in TILES if wgmma or not tile.startswith("wgmma"))


def native() -> Iterator[Launch]:
    """Launches of libatrous.so: convolutions with split-K, with large tiles and of a stem, in each tile that fits."""
    calls = [(2, 64, 9, 72, 3), (8, 64, 56, 64, 3), (8, 96, 56, 136, 3), (2, 3, 30, 64, 7)]
    for tile, (images, channels, side, out, kernel) in itertools.product(tiles(), calls):
        if tile and channels < 4:  # no named tile computes a stem
            continue
        x, w = draw(images, channels, side, side, memory_format=NHWC), draw(out, channels, kernel, kernel)
        spec = Spec(padding=(kernel // 2,) * 2)
        e = epilogue(out, torch.Size((images, out, side, side)), NHWC, "tensor")
        run = partial(in_tile, tile, torch.ops.atrous._conv_epilogue, *flat(x, w, None, spec, e))
        yield f"native conv_epilogue {tuple(x.shape)} * {tuple(w.shape)} {tile or 'predicted tile'}", run
    yield from pointwise("native", aten.operator)


def in_tile(tile: str, run: Callable[..., Outputs], *arguments) -> Outputs:
    torch.ops.atrous._conv_tile(tile)
    try:
        return run(*arguments)
    finally:
        torch.ops.atrous._conv_tile("")


def failure(run: Callable[[], Outputs]) -> str:
    """The reason why a launch failed; "" if it did not."""
    try:
        result = run()
        outputs = result if isinstance(result, tuple) else (result,)
        written = all(bool(output.isfinite().all()) for output in outputs)  # waits for the kernel
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if written else "not all of its output is finite"


def main(launches: Iterable[Launch], done: int = 0, failed: int = 0) -> int:
    """Runs the launches behind the first `done`, which an earlier process did and of which `failed` failed."""
    for label, run in itertools.islice(launches, done, None):
        print(label, end=": ", flush=True)
        reason = failure(run)
        print(f"FAILED, {reason}" if reason else "done", flush=True)
        done, failed = done + 1, failed + bool(reason)
        if reason and testing.gpu_lost():
            resume(done, failed)
    print(f"{done} launches, {failed} failed")
    return int(failed > 0)


def resume(done: int, failed: int) -> None:
    """Replaces this process by one that begins with the next launch."""
    options = [word for word in sys.argv[1:] if word == "--one"]
    counts = ["--done", str(done), "--failed", str(failed)]
    os.execv(sys.executable, [sys.executable, "-u", __file__, *options, *counts])


# Parts of a label: the tile of a convolution; the size and the activation of another kernel.
TILE, VARIANT = re.compile(r"\d+x\d+x\d+B w\d+ s\d+|(?<=mma-)\d+x\d+"), re.compile(r"\(.*?\)|relu|tensor|random")


def one(launches: Iterable[Launch]) -> Iterator[Launch]:
    """The first of the launches whose labels differ only in tile, size or activation.

    Convolutions of different sizes all stay: the addressing mode depends on it, and the first ones are dilated.
    """
    seen = set()
    for label, run in launches:
        kernel = TILE.sub("", label) if "*" in label else VARIANT.sub("", label)
        if kernel not in seen:
            seen.add(kernel)
            yield label, run


def every() -> Iterator[Launch]:
    yield from triton()
    if DEVICE == "cuda" and not device_support.native_reasons(torch.device("cuda", torch.cuda.current_device())):
        yield from native()


if __name__ == "__main__":
    if DEVICE == "cpu":
        import quick_interpreter

        quick_interpreter.quicken()
    parser = argparse.ArgumentParser(description="A small launch of every CUDA kernel.")
    parser.add_argument("--one", action="store_true", help="only the first launch of each kernel and addressing mode")
    parser.add_argument("--done", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--failed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.exit(main(one(every()) if args.one else every(), args.done, args.failed))
