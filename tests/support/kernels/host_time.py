"""Measures the host time of a call of each backend and of a launch of each Triton kernel, without a GPU.

    python tests/support/kernels/host_time.py [--json FILE] [--rounds N]

Host time is what the CPU spends until the driver has the kernel: at batch 1 without a CUDA graph it limits a network,
not the GPU. Triton's own launcher runs on the stand-in for the CUDA driver (standin.py), which takes no time; the peer
is plain torch on a CPU, which computes 4x4 pixels. Tensors are on the CPU, so neither includes what torch adds on a GPU
(a device guard, cuDNN's choice of an algorithm).

Times are CPU time of this thread, the median of interleaved rounds. Budgets: 2x plain torch for a backend, 15 us for a
launch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path += [str(Path(__file__).parents[3]), str(Path(__file__).parents[1] / "standin")]

import standin
import torch
import torch.nn.functional as F
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from atrous.backends import library, native, triton
from atrous.core.spec import Epilogue, Spec
from atrous.tools import info
from atrous.triton_kernels import launch
from atrous.triton_kernels.conv import configs, problem
from atrous.triton_kernels.conv import forward as conv
from atrous.triton_kernels.conv import statistics as conv_statistics
from atrous.triton_kernels.pointwise import backward as gradients
from atrous.triton_kernels.pointwise import forward as pointwise
from atrous.triton_kernels.pointwise import operands
from atrous.triton_kernels.pointwise import reduce as channel_sums
from atrous.triton_kernels.pointwise import reduction_plan as reductions
from atrous.triton_kernels.pointwise import statistics as channel_statistics
from bench import record

Call = Callable[[], object]
CHIP, MULTIPROCESSORS = 90, 132
LAUNCHERS = (conv, conv_statistics, pointwise, gradients, channel_statistics, channel_sums)
CALLS = 200  # per measurement
MAX_RATIO, MAX_LAUNCH_US = 2.0, 15.0  # budgets: a backend over plain torch; a launch
NHWC = torch.channels_last


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Makes Triton's launchers accept CPU tensors as those of an H100; the stand-in driver takes the launches."""
    standin.library().use(CHIP)
    standin.library().calls.standin_any_memory(True)
    from triton.backends.nvidia.driver import CudaDriver

    class Driver(CudaDriver):
        def __init__(self) -> None:
            super().__init__()
            self.get_current_device, self.get_current_stream = lambda: 0, lambda device: 0
            self.get_current_target = lambda: GPUTarget("cuda", CHIP, 32)
            self.get_device_capability = lambda device=0: divmod(CHIP, 10)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(driver, "_active", Driver()))
        for module in (problem, operands, reductions):
            stack.enter_context(mock.patch.object(module, "chip", lambda device: (CHIP, MULTIPROCESSORS)))
        for module in LAUNCHERS:
            stack.enter_context(mock.patch.object(module, "check_device", lambda *arguments: None))
        stack.callback(standin.library().calls.standin_any_memory, False)
        yield


def layer(channels: int, size: int, dtype: torch.dtype) -> SimpleNamespace:
    """A 3x3 convolution with BatchNorm, per-channel slopes and a residual, on one image of size x size pixels."""
    x = torch.randn(1, channels, size, size).to(dtype, memory_format=NHWC)
    w = torch.randn(channels, channels, 3, 3).to(dtype, memory_format=NHWC)
    vectors, slope = [torch.rand(channels) + 0.5 for _ in range(4)], torch.rand(channels)
    epilogue = Epilogue(*vectors, slope_kind="tensor", slope=slope, residual=torch.randn_like(x))
    return SimpleNamespace(x=x, w=w, epilogue=epilogue, spec=Spec(padding=(1, 1)))


def plain(conv_layer: SimpleNamespace) -> Call:
    """The layer in plain torch: a convolution, a BatchNorm, an addition and a PReLU."""
    mean, var, gamma, beta, *_ = conv_layer.epilogue
    slope, residual = conv_layer.epilogue.slope, conv_layer.epilogue.residual

    def call():
        z = F.conv2d(conv_layer.x, conv_layer.w, None, 1, 1)
        return F.prelu(F.batch_norm(z, mean, var, gamma, beta) + residual, slope)

    return call


def backends() -> dict[str, Call]:
    """A call of each backend. Plain torch and C++ compute, so their image is small."""
    small, large = layer(4, 4, torch.float32), layer(64, 56, torch.bfloat16)
    calls = {"plain torch": plain(small)}
    for backend in (library, native):
        arguments = small.x, small.w, None, small.spec, small.epilogue
        calls[backend.name] = lambda backend=backend, arguments=arguments: backend.conv_epilogue(*arguments)
    arguments = large.x, large.w, None, large.spec, large.epilogue
    calls["triton"] = lambda: triton.conv_epilogue(*arguments)
    calls["triton, the epilogue alone"] = lambda: triton.epilogue(large.x, large.epilogue)
    return calls


def launches() -> dict[str, Call]:
    """The launch of each launcher by itself: `launch` with a plan that already has its code."""
    full, small = layer(64, 56, torch.bfloat16), layer(64, 7, torch.bfloat16)
    grad = torch.randn_like(full.x)
    means = torch.zeros(3, 64)
    pointers = next(config for config in configs.CONV if not config.descriptors)

    def convolve(case=full, config=None):
        return conv.conv_epilogue(
            case.x, case.w, None, case.spec, case.epilogue, memory_format=NHWC, config=config
        )  # fmt: skip

    launchers = {
        "conv_epilogue, descriptors": convolve,
        "conv_epilogue, descriptors, split-K": lambda: convolve(small),
        "conv_epilogue, pointers": lambda: convolve(config=pointers),
        "conv_statistics": lambda: conv_statistics.conv_statistics(full.x, full.w, None, full.spec, memory_format=NHWC),
        "epilogue": lambda: pointwise.epilogue(full.x, full.epilogue),
        "statistics": lambda: gradients.statistics(full.x),
        "epilogue_reduce": lambda: gradients.epilogue_reduce(grad, full.x, full.epilogue),
        "epilogue_backward": lambda: gradients.epilogue_backward(grad, full.x, means, True, True, full.epilogue),
    }
    return {name: captured(call) for name, call in launchers.items()}


def captured(call: Call) -> Call:
    """The one `launch` that this call of a launcher makes, without the launcher."""
    recorded: list[tuple[Any, Any]] = []

    def record_launch(*arguments, **options):
        recorded.append((arguments, options))
        launch.launch(*arguments, **options)

    with contextlib.ExitStack() as stack:
        for module in LAUNCHERS:
            stack.enter_context(mock.patch.object(module, "launch", record_launch))
        call()
    ((arguments, options),) = recorded
    return lambda: launch.launch(*arguments, **options)


def microseconds(call: Call) -> float:
    begin = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - begin) / CALLS * 1e6


def measure(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    for call in calls.values():
        microseconds(call)
    times = [{name: microseconds(call) for name, call in calls.items()} for _ in range(rounds)]
    return {name: statistics.median(one_round[name] for one_round in times) for name in calls}


@torch.no_grad()
def measured(rounds: int) -> dict[str, Any]:
    with fake_gpu():
        backend_calls, kernel_launches = backends(), launches()
        times = measure(backend_calls | kernel_launches, rounds)
    return {
        **record.about(info.processor(), info.versions()),
        "backends": {name: times[name] for name in backend_calls},
        "launches": {name: times[name] for name in kernel_launches},
    }


def show(result: dict[str, Any]) -> str:
    peer = result["backends"]["plain torch"]
    lines = [f"{'one call':<40}{'us':>8}{'over plain':>12}"]
    lines += [f"{name:<40}{us:>8.1f}{us / peer:>11.2f}x" for name, us in result["backends"].items()]
    lines += [f"{'one launch':<40}{'us':>8}", *(f"{name:<40}{us:>8.1f}" for name, us in result["launches"].items())]
    return "\n".join(lines + [f"over budget: {text}" for text in over(result)])


def over(result: dict[str, Any]) -> list[str]:
    """A line for each time over its budget."""
    peer = result["backends"]["plain torch"]
    slow_calls = [
        f"{name} {us / peer:.2f}x plain torch, {MAX_RATIO:g}x allowed"
        for name, us in result["backends"].items() if us > MAX_RATIO * peer
    ]  # fmt: skip
    return slow_calls + [
        f"launch of {name} {us:.1f} us, {MAX_LAUNCH_US:g} allowed"
        for name, us in result["launches"].items() if us > MAX_LAUNCH_US
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = measured(args.rounds)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(show(result))
    return int(bool(over(result)))


if __name__ == "__main__":
    sys.exit(main())
