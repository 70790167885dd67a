"""Makes drawn calls of the operators of csrc/cpu, under a sanitizer: sanitized.py starts it.

    python drawn_calls.py --seed 3 --count 100 [--kind winograd [--number 17]] [--case CASE]

A kind is `passes` (all operators without a convolution), `winograd` or `fuzz` (cases of fuzz_conv.py, compared with the
oracle). Each call is named before it runs, so that the last line names the one that the sanitizer stops. It runs in
new threads: buffers that csrc/cpu keeps per thread are then new, and what lies behind one is not an older call's. Calls
of operators alone run in two threads at once.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS / name) for name in ("support", "support/fusion", "support/kernels", "fuzz", "csrc")]

import fuzz_check  # noqa: E402
import fuzz_conv  # noqa: E402
import test_native_training as training  # noqa: E402
import test_winograd as winograd  # noqa: E402
import torch  # noqa: E402
from fuzz_report import to_text  # noqa: E402
from native_cases import KINDS, PLACES, arguments  # noqa: E402
from parameters import DTYPES  # noqa: E402
from poisoned_margins import poisoned_margins  # noqa: E402
from torch import Tensor  # noqa: E402

from atrous.core.spec import Epilogue  # noqa: E402

ops = torch.ops.atrous
CHANNELS = (1, 2, 3, 7, 16, 19, 32, 33, 64, 130)
MANY = (264, 300, 600)  # several blocks of channels
NHWC = torch.channels_last


def in_threads(call: Callable[[], Any], count: int) -> list[Any]:
    """The results of the call in so many new threads."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(call) for _ in range(count)]
        return [future.result() for future in futures]


def draw_z(rng: random.Random) -> Tensor:
    """A tensor of two to five dimensions, in either layout: many channels, long planes, or a large batch."""
    batch, channels = rng.choice((1, 2, 5, 70)), rng.choice(CHANNELS + MANY)
    spatial = [rng.randint(1, rng.choice((3, 20, 101))) for _ in range(rng.randint(0, 3))]
    while batch * channels * torch.Size(spatial).numel() > 60_000:
        batch, channels = max(1, batch // 2), max(1, channels // 3)
        spatial = [max(1, size // 2) for size in spatial]
    z = (torch.randn(batch, channels, *spatial) * 2 + 1).to(rng.choice(DTYPES))
    return rng.choice(training.layouts(z))


def passes(rng: random.Random) -> Callable[[], None]:
    """A second call gives the same bits; fuzz_conv.py compares values."""
    z, norm = draw_z(rng), rng.choice(training.NORMS)
    grad, means, e = training.case(z, rng.choice(KINDS), rng.choice(PLACES), norm, rng.choice((0.0, 0.3, 1.0)))
    needs = [rng.random() < 0.8 for _ in range(3)]
    calls = {
        "_epilogue": (z, *e),
        "_epilogue_again": (z, *e),
        "_statistics": (z,),
        "_statistics_epilogue": (z, *e._replace(mean=None, var=None)),
        "_epilogue_reduce": (grad, z, *e),
        "_epilogue_backward": (grad, z, means, *needs[:2], *e),
        "_epilogue_gradients": (grad, z, norm == "batch", *needs, *e),
    }

    def run() -> None:
        for name, values in calls.items():
            first, second = (getattr(ops, name)(*values) for _ in range(2))
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)

    return run


def draw_map(rng: random.Random) -> tuple[tuple, tuple, tuple, tuple, tuple]:
    """Sizes of input, weight and output, padding and dilation of a 3x3 convolution."""
    large = rng.random() < 0.2  # several blocks of tiles; otherwise perhaps several groups of output channels
    channels = [rng.choice(CHANNELS[:7] if large else CHANNELS + MANY[-1:]) for _ in range(2)]
    batch, size = rng.randint(1, 5), [rng.randint(30, 45) if large else rng.randint(1, 14) for _ in range(2)]
    dilation = rng.choice(((1, 1), (1, 1), (2, 2), (rng.randint(1, 5), rng.randint(1, 5))))
    least = [max(0, -((n - 1) // 2 - d)) for n, d in zip(size, dilation)]
    padding = tuple(n + rng.randint(0, 2) for n in least)
    output = [n + 2 * p - 2 * d for n, p, d in zip(size, padding, dilation)]
    weight = channels[1], channels[0], 3, 3
    return (batch, channels[0], *size), weight, (batch, channels[1], *output), padding, dilation


def draw_tensor(rng: random.Random, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """In either layout, sometimes with one value that is not finite."""
    tensor = torch.randn(size).to(dtype)
    if rng.random() < 0.1:
        tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice((torch.inf, -torch.inf, torch.nan))
    return tensor.contiguous(memory_format=NHWC) if rng.random() < 0.7 else tensor


def winograd_calls(rng: random.Random) -> Callable[[], None]:
    """The three operators with a drawn tile, and torch's own convolution with the epilogue."""
    tile, dtype, turned = rng.choice(winograd.TILES), rng.choice(winograd.STORED), rng.random() < 0.3
    input, weight, output, *pads = draw_map(rng)
    x, w, grad = (draw_tensor(rng, size, dtype) for size in (input, weight, output))
    bias = torch.randn(output[1]).to(dtype) if rng.random() < 0.5 else None
    e = arguments(grad.contiguous(memory_format=NHWC), rng.choice(KINDS), rng.choice(PLACES), rng.random() < 0.5)
    taps = w.flip(2, 3).transpose(0, 1) if turned else w
    z = torch.conv2d(x.double(), w.double(), None if bias is None else bias.double(), 1, *pads)
    dw = winograd.weight_gradient(grad.double(), x.double(), *pads)
    with_transformed = rng.random() < 0.5

    def run() -> None:
        transformed = winograd.transform(taps, tile, turned) if with_transformed else None
        call = x, taps, transformed, turned, tile[:2], tile.int16, bias, *pads
        near(ops._winograd_epilogue(*call, *Epilogue()), z)
        ops._winograd_epilogue(*call, *e)
        ops._conv_epilogue(x, w, bias, (1, 1), *pads, 1, *e)
        near(ops._winograd_weight_gradient(grad, x, *pads, tile[:2]), dw)

    return run


def near(result: Tensor, truth: Tensor) -> None:
    """Within 3 % of the largest value: errors of any dtype are, and a work item that is left out is not."""
    if truth.isfinite().all():
        bound = 0.03 * truth.abs().max().item() + 1e-6
        torch.testing.assert_close(result.double(), truth, rtol=0, atol=bound)


KIND_CALLS = {"passes": passes, "winograd": winograd_calls}


def make_calls(kind: str, seed: int, numbers: range) -> None:
    for number in numbers:
        print(f"--kind {kind} --seed {seed} --number {number}", flush=True)
        rng = random.Random(f"{kind} {seed} {number}")
        torch.manual_seed(rng.randrange(1 << 32))
        in_threads(KIND_CALLS[kind](rng), 2)


def fuzz(arguments: list[str]) -> int:
    """Cases of the fuzzer; AddressSanitizer reports an access to the memory around an operand too."""
    check = fuzz_conv.check_call

    def in_own_thread(case):
        print(f"--case {shlex.quote(to_text(case))}", flush=True)
        return in_threads(lambda: check(case), 1)[0]

    # torch's profiler, which counts operators, is no part of what is tested
    uncounted = mock.patch.object(fuzz_check, "counted", lambda: contextlib.nullcontext(Counter()))
    with mock.patch.object(fuzz_conv, "check_call", in_own_thread), uncounted, poisoned_margins():
        return fuzz_conv.main(["--backend", "native", "--no-shrink", *arguments])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="calls of each kind")
    parser.add_argument("--number", type=int, help="only the call of this number, with --kind")
    parser.add_argument("--kind", choices=(*KIND_CALLS, "fuzz"))
    parser.add_argument("--case", help="only this case of the fuzzer")
    options = parser.parse_args()
    if options.case:
        return fuzz(["--case", options.case])
    numbers = range(options.count) if options.number is None else range(options.number, options.number + 1)
    for kind in KIND_CALLS:
        if options.kind in (None, kind):
            make_calls(kind, options.seed, numbers)
    cases = ["--seed", str(options.seed), "--count", str(options.count)]
    return fuzz(cases) if options.kind in (None, "fuzz") else 0


if __name__ == "__main__":
    sys.exit(main())
