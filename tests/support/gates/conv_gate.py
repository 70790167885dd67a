"""The compile gate's variants of the convolution kernels: each config on layers that reach all code paths.

`python tests/support/gates/conv_gate.py docs/triton-kernels.md` (`make kernel-table`) regenerates the documented table.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import compile_gate as gate
import torch

from atrous.core.spec import Epilogue, Spec
from atrous.triton_kernels.conv import configs, problem, statistics
from atrous.triton_kernels.conv import forward as conv
from atrous.triton_kernels.conv.configs import Conv, Pair

ROOT = Path(__file__).parents[3]
CHIPS = (80, 90, 100)
# The tensor-core instruction of each generation (PTX ISA), and the copies to shared memory.
MMA = {80: r"mma\.sync", 90: r"wgmma\.mma_async", 100: r"tcgen05\.mma"}
MMA |= {86: MMA[80], 120: MMA[80]}
# MMAs in flight while the loop goes on, and the bulk store of the result.
IN_FLIGHT, BULK_STORE = r"wgmma\.wait_group\.sync\.aligned [1-9]", r"tensor\.\dd\.global\.shared"
BULK, ASYNC = r"cp\.async\.bulk\.tensor", r"cp\.async\.cg\.shared"  # cg: of 16 bytes
MULTIPROCESSORS = 132
NHWC, NCHW = torch.channels_last, torch.contiguous_format


class Layer(NamedTuple):
    """A convolution that a config is compiled for."""

    in_channels: int
    size: Pair
    out_channels: int
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    memory_format: torch.memory_format = NHWC
    batch: int = 8


LAYERS = {
    "dilated": Layer(256, (28, 28), 256, padding=(2, 2), dilation=(2, 2)),
    "strided": Layer(128, (28, 28), 256, stride=(2, 2)),
    "1x1 strided": Layer(256, (14, 14), 512, (1, 1), (2, 2), (0, 0)),
    "stem": Layer(3, (224, 224), 64, (7, 7), (2, 2), (3, 3)),
    "odd": Layer(31, (13, 29), 33, (1, 3), (2, 1), (0, 5), (1, 5)),
    "grouped": Layer(128, (28, 28), 128, groups=4),
    "NCHW": Layer(64, (28, 28), 64, memory_format=NCHW),
    "NCHW stem": Layer(3, (224, 224), 64, (7, 7), (2, 2), (3, 3), memory_format=NCHW),
}
DEPTHWISE = {
    "depthwise": Layer(64, (28, 28), 64, groups=64),
    "depthwise NCHW": Layer(64, (28, 28), 128, (5, 5), (1, 1), (4, 4), (2, 2), 64, NCHW),
}


def variant(
    name: str, layer: Layer, config: Conv, chip: int, dtype=torch.bfloat16, slope_kind="tensor", residual="before",
    norm=True, precision="tf32",
) -> gate.Variant | None:  # fmt: skip
    """The variant that `conv_epilogue` launches on that chip, or None if the config does not fit the layer."""
    x, w, size, spec = _tensors(layer, dtype)
    vector, seed = torch.ones(layer.out_channels, device="meta"), torch.zeros(2, dtype=torch.int64)
    addend = None if residual == "none" else torch.empty(size, dtype=dtype, device="meta", memory_format=x[1])
    bias, bn = (None, [vector] * 4) if norm else (vector, [None] * 4)
    e = Epilogue(*bn, vector, addend, slope_kind, 1e-5, 0.1, 0.3, residual == "after", seed)
    run = lambda: conv.conv_epilogue(x[0], w, bias, spec, e, memory_format=x[1], config=config)  # noqa: E731
    label = f"conv {name} {config.describe()} {dtype} {slope_kind} {residual}"
    return _capture(conv, "conv_epilogue_kernel", run, label, config, chip, layer, precision)


def statistics_variant(name: str, layer: Layer, config: Conv, chip: int, dtype=torch.bfloat16) -> gate.Variant | None:
    x, w, _, spec = _tensors(layer, dtype)
    bias = torch.ones(layer.out_channels, dtype=dtype, device="meta")
    run = lambda: statistics.conv_statistics(x[0], w, bias, spec, memory_format=x[1], config=config)  # noqa: E731
    label = f"statistics {name} {config.describe()} {dtype}"
    return _capture(statistics, "conv_statistics_kernel", run, label, config, chip, layer, "tf32")


def _tensors(layer: Layer, dtype: torch.dtype):
    """Meta tensors and the geometry of a layer."""
    size = (layer.batch, layer.in_channels, *layer.size)
    x = torch.empty(size, dtype=dtype, device="meta", memory_format=layer.memory_format)
    w = torch.empty(layer.out_channels, layer.in_channels // layer.groups, *layer.kernel, dtype=dtype, device="meta")
    spec = Spec(layer.stride, layer.padding, layer.dilation, layer.groups)
    return (x, layer.memory_format), w, torch.conv2d(x, w, None, *spec).shape, spec


def _capture(module, kernel, run, label, config, chip, layer, precision) -> gate.Variant | None:
    recorder = gate.Recorder(getattr(module, kernel))
    here = mock.patch.multiple(problem, chip=lambda device: (chip, MULTIPROCESSORS), precision=lambda x: precision)
    with here, mock.patch.object(module, kernel, recorder):
        try:
            run()
        except ValueError as error:
            assert str(error).startswith("config: "), error
            return None
    depthwise = layer.groups == layer.in_channels
    patterns = [MMA[chip]] * (precision != "ieee" and not depthwise)
    dense = layer.memory_format == NHWC and layer.in_channels // layer.groups % 16 == 0 and not config.descriptors
    if config.descriptors or dense and not depthwise:
        patterns.append(BULK if config.descriptors else ASYNC)
        if chip == 90 and precision != "ieee":
            patterns.append(IN_FLIGHT)
    stores = (BULK_STORE,) if config.descriptors else ()
    wide = [name for name in ("y", "z", "residual") if dense and recorder.arguments.get(name) is not None]
    return gate.capture(
        recorder, module.__name__, label=label, loop_patterns=tuple(patterns), wide=tuple(wide), patterns=stores
    )


BLOCK = re.compile(r"(<!-- gate: begin -->\n).*?(<!-- gate: end -->)", re.DOTALL)


def table() -> str:
    """One row per config: registers per thread, shared memory and the main loop's instruction on each chip."""
    lines = ["| config | " + " | ".join(f"sm_{chip}" for chip in CHIPS) + " |", "|---" * (len(CHIPS) + 1) + "|"]
    variants = {(config, chip): variant("dilated", LAYERS["dilated"], config, chip) for config in configs.CONV
                for chip in CHIPS}  # fmt: skip
    jobs = {key: (job, key[1]) for key, job in variants.items() if job}
    cells = {key: _cell(report) for key, report in zip(jobs, gate.build_all(list(jobs.values())))}
    for config in configs.CONV:
        row = (cells.get((config, chip), "") for chip in CHIPS)
        lines.append(f"| {config.describe()} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _cell(report: gate.Report) -> str:
    (instruction,) = (name for name in ("mma.sync", "wgmma", "tcgen05") if name in report.loops)
    spills = f", {report.stack} B spilled" if report.stack else ""
    return f"{report.registers} registers, {report.shared >> 10} KiB, {instruction}{spills}"


def rewritten(text: str) -> str:
    """The document with its table regenerated."""
    return BLOCK.sub(lambda match: match[1] + table() + "\n" + match[2], text)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(rewritten(path.read_text()))
