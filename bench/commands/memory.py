"""Memory of a training step of ResNet34 on a CPU, as one line of JSON; bench_memory.py runs it, a process for each.

    python -m bench.commands.memory PROVIDER [--batch 8] [--size 224] [--output-stride 8]

saved_mb: what autograd saves for the backward, exact, each storage once, parameters left out. allocated_mb: the largest
sum of torch's allocations in a step, above that before it: maps and gradients. peak_mb: the largest resident memory in
the second step, above that before the model was made: also parameters, momentum, a compiler's code, and freed memory
that malloc keeps.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import atrous
from bench.subjects import training

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since the last reset."""
    return int(re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())[1]) * 1024  # type: ignore[index]


def allocated(step: Callable[[], object]) -> int:
    """The largest sum of torch's allocations, less what is freed, since the step began."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("provider", choices=training.VARIANTS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--output-stride", type=int)
    args = parser.parse_args(argv)
    images = torch.randn(args.batch, 3, args.size, args.size)
    before = resident("VmRSS")
    model = atrous.models.resnet34(act="prelu", output_stride=args.output_stride)
    step = training.Step(args.provider, model, images, torch.float32)
    del model
    step()
    ctypes.CDLL(None).malloc_trim(0)  # frees what the first step alone needed
    RESET.write_text("5")
    step()
    peak = resident("VmHWM") - before
    saved = step.saved_bytes() * args.batch
    print(json.dumps({"saved_mb": saved / 1e6, "allocated_mb": allocated(step) / 1e6, "peak_mb": peak / 1e6}))


if __name__ == "__main__":
    main()
