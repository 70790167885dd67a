"""A process of bench.compare: reads names of cases on stdin, and prints the milliseconds of one call of each.

The package is what Python finds as atrous. Only public names of it are used, so that earlier commits run it too.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import atrous

Call = Callable[[], object]
SHORTEST = 5.0  # ms: a shorter call is repeated to take as long, and measured so BLOCKS times
BLOCKS = 5  # their median counts, since an interruption is as long as one


def network(freeze: bool, batch: int, dtype: torch.dtype = torch.float32) -> Call:
    model = atrous.models.resnet34(act="prelu").eval().to(dtype)
    x = torch.randn(batch, 3, 224, 224).to(dtype, memory_format=torch.channels_last)
    fused = atrous.fuse(model, freeze=freeze)
    return torch.no_grad()(lambda: fused(x))


def step() -> Call:
    fused = atrous.fuse(atrous.models.resnet34(act="prelu").train().to(memory_format=torch.channels_last))
    x = torch.randn(4, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(4)
    return lambda: F.cross_entropy(fused(x), labels).backward()


def layer(op: str) -> Call:
    """A layer of ResNet34's first stage."""
    x, r = (torch.randn(1, 64, 56, 56).contiguous(memory_format=torch.channels_last) for _ in range(2))
    weight, slope, norm = torch.randn(64, 64, 3, 3), torch.rand(64), [torch.rand(64) + 0.5 for _ in range(4)]
    calls = {
        "conv_bn_act": lambda: atrous.conv_bn_act(x, weight, None, *norm, padding=1, slope=slope, residual=r),
        "bn_act": lambda: atrous.bn_act(x, *norm, slope=slope, residual=r),
        "add_act": lambda: atrous.add_act(x, r, slope=slope),
    }
    return torch.no_grad()(calls[op])


CASES: dict[str, Callable[[], Call]] = {
    "frozen, batch 1": lambda: network(True, 1),
    "frozen, batch 8": lambda: network(True, 8),
    "frozen bf16, batch 8": lambda: network(True, 8, torch.bfloat16),
    "eval, batch 1": lambda: network(False, 1),
    "training step, batch 4": step,
    "conv_bn_act": lambda: layer("conv_bn_act"),
    "bn_act": lambda: layer("bn_act"),
    "add_act": lambda: layer("add_act"),
}


def milliseconds(call: Call, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) * 1e3 / repeats


def main() -> None:
    torch.manual_seed(0)
    known: dict[str, tuple[Call, int]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in known:
            call = CASES[name]()
            call()  # compiles
            known[name] = call, 1 + int(SHORTEST / min(milliseconds(call, 1) for _ in range(3)))
        call, repeats = known[name]
        call()  # another process had the caches
        print(statistics.median(milliseconds(call, repeats) for _ in range(BLOCKS if repeats > 1 else 1)), flush=True)


if __name__ == "__main__":
    main()
