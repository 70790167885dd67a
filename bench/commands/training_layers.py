"""Times the parts of a training step of ResNet34 on a CPU, layer by layer: fused in channels_last, and eager in NCHW.

    python -m bench.commands.training_layers [--dtype float32] [--act prelu] [--batch 8] [--seconds 60] [--json FILE]

The convolution's parts are its forward, its input gradient (dgrad) and weight gradient (wgrad), each in both layouts by
oneDNN and, where the library has one, by its own kernel. The passes are statistics and epilogue in one call (eager:
BatchNorm, then the activation) and the gradient of both. Each kind of layer is timed once and counted as often as the
network has it. Residuals are left out, as are pooling, the classifier and the optimizer.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import atrous
from atrous.backends import native
from atrous.core.spec import Epilogue, Spec
from atrous.tools import timing
from bench import record

NHWC = torch.channels_last
KINDS = {"relu": ("relu", 1.0), "leaky_relu": ("number", 0.01), "prelu": ("tensor", 1.0)}


class Layer(NamedTuple):
    channels: int
    outputs: int
    kernel: int
    stride: int
    size: int  # height and width before the convolution

    def macs(self, batch: int) -> int:
        return batch * (self.size // self.stride) ** 2 * self.channels * self.outputs * self.kernel**2


def layers(size: int = 224) -> Counter[Layer]:
    """The convolutions of ResNet34 and how often each occurs."""
    counts: Counter[Layer] = Counter()

    def count(conv, inputs, output) -> None:
        geometry = conv.kernel_size[0], conv.stride[0], inputs[0].shape[-1]
        counts[Layer(conv.in_channels, conv.out_channels, *geometry)] += 1

    model = atrous.models.resnet34().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return counts


def convolutions(layer: Layer, batch: int, dtype: torch.dtype) -> tuple[dict[str, Callable[[], Any]], Tensor]:
    """Calls by part, and the convolution's output in channels_last."""
    spec = Spec(*((n, n) for n in (layer.stride, layer.kernel // 2, 1)), 1)
    x = torch.randn(batch, layer.channels, layer.size, layer.size).to(dtype)
    w = torch.randn(layer.outputs, layer.channels, layer.kernel, layer.kernel).div(10).to(dtype)
    z = torch.conv2d(x, w, None, *spec)
    calls: dict[str, Callable[[], Any]] = {}
    geometry = [layer.outputs], spec.stride, spec.padding, spec.dilation, False, (0, 0), 1

    def backward(grad: Tensor, input: Tensor, mask: list[bool]) -> Callable[[], Any]:
        return lambda: torch.ops.aten.convolution_backward(grad, input, w, *geometry, mask)

    def forward(input: Tensor) -> Callable[[], Any]:
        return lambda: torch.conv2d(input, w, None, *spec)

    for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", NHWC)):
        xs, zs = (tensor.contiguous(memory_format=layout) for tensor in (x, z))
        calls[f"forward {name}"] = forward(xs)
        calls[f"dgrad {name}"] = backward(zs, xs, [True, False, False])
        calls[f"wgrad {name}"] = backward(zs, xs, [False, True, False])
    calls["forward ours"] = lambda: native.convolution(xs, w, None, spec)
    calls["dgrad ours"] = lambda: native.convolution_backward(zs, xs, w, spec, NHWC, [True, False, False])
    return calls, zs


def passes(z: Tensor, act: str) -> dict[str, Callable[[], Any]]:
    """Calls of the passes on an output z: fused, and eager's on the same values in NCHW."""
    channels = z.shape[1]
    gamma, beta, slope = torch.rand(channels) + 0.5, torch.randn(channels), torch.rand(channels) / 2
    kind, value = KINDS[act]
    e = Epilogue(None, None, gamma, beta, slope if act == "prelu" else None, None, kind, 1e-5, value)
    forward, backward = native.primitive("_statistics_epilogue", z), native.primitive("_epilogue_gradients", z)
    y, mean, var = forward(z, e)
    known = e._replace(mean=mean, var=var)
    norm = torch.nn.BatchNorm2d(channels)
    modules = {"relu": torch.nn.ReLU(True), "leaky_relu": torch.nn.LeakyReLU(0.01, True)}
    module = modules.get(act) or torch.nn.PReLU(channels)
    plain_z = z.contiguous().requires_grad_()
    plain = lambda: module(norm(plain_z))  # noqa: E731
    with torch.autocast("cpu", enabled=z.dtype != torch.float32):
        plain_y = plain()
    wanted = [plain_z, *norm.parameters(), *module.parameters()]
    plain_grad = y.contiguous()
    return {
        "passes forward": lambda: forward(z, e),
        "passes gradient": lambda: backward(y, z, True, True, False, True, known),
        "passes forward eager": plain,
        "passes gradient eager": lambda: torch.autograd.grad(plain_y, wanted, plain_grad, retain_graph=True),
    }


def row(layer: Layer, count: int, batch: int, dtype: torch.dtype, act: str, seconds: float) -> dict:
    calls, z = convolutions(layer, batch, dtype)
    ms = timing.medians(timing.interleaved(calls | passes(z, act), torch.device("cpu"), seconds))
    parts = {part: layer.macs(batch) / time / 1e6 for part, time in ms.items() if not part.startswith("passes")}
    shape = {"layer": layer._asdict(), "count": count, "batch": batch, "dtype": str(dtype)[6:], "act": act}
    return shape | {"median_ms": ms, "gmac_s": parts}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--act", choices=KINDS, default="prelu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="of measurement over all layers (default 60)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    counts, rows = layers(), []
    for layer, count in counts.items():
        rows.append(row(layer, count, args.batch, getattr(torch, args.dtype), args.act, args.seconds / len(counts)))
        ms, rates = rows[-1]["median_ms"], rows[-1]["gmac_s"]
        rate = {part: f" ({rates[part]:.0f} GMAC/s)" if part in rates else "" for part in ms}
        text = ", ".join(f"{part} {time:.2f}{rate[part]}" for part, time in ms.items())
        print(f"{count} x {layer.channels}-{layer.outputs} {layer.kernel}x{layer.kernel} /{layer.stride}: {text}")
    total = {part: sum(one["count"] * one["median_ms"][part] for one in rows) for part in rows[0]["median_ms"]}
    print("ms of all layers: " + ", ".join(f"{part} {time:.0f}" for part, time in total.items()))
    if args.json:
        record.write_rows(args.json, rows)


if __name__ == "__main__":
    main()
