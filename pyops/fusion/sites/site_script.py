"""A site as a program of its own, which compares it with torch's operators and times both."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...core import graph_compat
from . import spellings
from .call import Options
from .chains import Chain, uses_batch_statistics
from .effects import value

TEMPLATE = '''"""{pattern} at {path}: the site alone, compared with torch's own operators and timed beside them."""

import torch
from torch import nn
from torch.utils.benchmark import Timer

import atrous


class Site(nn.Module):
    def __init__(self):
        super().__init__()
{layers}

    def forward(self, {parameters}):
        return {expression}


torch.manual_seed(0)
model = Site().to({device!r}, {dtype}).train({training})
inputs = {inputs}
fused = atrous.fuse(model, backend={backend!r}, freeze={freeze})


def run(model):
    with torch.set_grad_enabled({gradients}), torch.autocast({device!r}, {autocast}, enabled={autocasts}):
        y = model(*inputs)
    if {gradients}:
        y.sum().backward()
    return y.detach()


ours, plain = run(fused), run(model)
print(fused.fusion_report)
print("largest difference:", (ours - plain).abs().max().item(), "of", plain.abs().max().item())
for name, one in (("torch", model), ("fused", fused), ("torch", model), ("fused", fused)):
    timer = Timer("run(model)", globals={{"run": run, "model": one}})
    print(name, timer.blocked_autorange(min_run_time=1).median * 1e6, "us")
'''


def script_of(chain: Chain, path: str, options: Options) -> str:
    """The text of the program."""
    first, bn, result = next(iter(chain.steps.values())), chain.steps.get("bn"), value(chain.last)
    a = spellings.arguments(first)
    inputs = {"x": value(_chained(chain, first) if spellings.role(first) == "add" else a.input)}
    if chain.residual is not None:
        inputs["residual"] = value(chain.residual)
    owned = [value(node) for node in (getattr(a, "weight", None), getattr(a, "running_mean", None)) if node is not None]
    dtype = next(iter((*owned, inputs["x"]))).dtype
    return TEMPLATE.format(
        pattern=chain.pattern, path=path, parameters=", ".join(inputs), expression=_expression(chain),
        layers="\n".join(f"        {line}" for line in map(_layer, chain.steps, chain.steps.values()) if line),
        device=inputs["x"].device.type, dtype=dtype, inputs=f"[{', '.join(map(_tensor, inputs.values()))}]",
        training="dropout" in chain.steps or (bn is not None and uses_batch_statistics(bn)),
        backend=options.backend, freeze=options.freeze, gradients=result.requires_grad,
        autocasts=result.dtype != dtype, autocast=torch.bfloat16 if result.dtype == dtype else result.dtype,
    )  # fmt: skip


def _chained(chain: Chain, add: fx.Node) -> fx.Node:
    first, second = spellings.operands(add) or (add.args[0], None)
    return second if first is chain.residual else first  # type: ignore[return-value]


def _layer(role: str, node: fx.Node) -> str:
    """The statement that makes the module of one step."""
    a = spellings.arguments(node)
    if role == "conv":
        outputs, inputs, *kernel = value(a.weight).shape
        channels = f"{_literal(inputs)} * {a.groups}, {_literal(outputs)}"
        geometry = _literal((tuple(kernel), a.stride, a.padding, a.dilation))[1:-1]
        return f"self.conv = nn.Conv2d({channels}, {geometry}, {a.groups}, {a.bias is not None})"
    if role == "bn":
        numbers, flags = _literal((a.eps, a.momentum))[1:-1], (a.weight is not None, a.running_mean is not None)
        return f"self.bn = nn.BatchNorm2d({_literal(value(node).shape[1])}, {numbers}, {flags[0]}, {flags[1]})"
    if role == "dropout":
        return f"self.dropout = nn.Dropout({_literal(a.p)})"
    return "" if role == "add" else f"self.act = {_activation(node, a)}"


def _activation(node: fx.Node, a: Any) -> str:
    match spellings.role(node):
        case "relu":
            return "nn.ReLU()"
        case "leaky_relu":
            return f"nn.LeakyReLU({_literal(a.negative_slope)})"
        case "prelu":
            return f"nn.PReLU({_literal(value(a.weight).numel())})"
    return f"nn.RReLU({_literal(a.lower)}, {_literal(a.upper)})"


def _expression(chain: Chain) -> str:
    text = "x"
    for role in chain.steps:
        text = f"{text} + residual" if role == "add" else f"self.{role}({text})"
    return text


def _tensor(fake: torch.Tensor) -> str:
    text = f"torch.randn({_literal(tuple(fake.shape))}, device={fake.device.type!r}, dtype={fake.dtype})"
    if fake.dim() == 4 and not fake.is_contiguous():
        text += ".to(memory_format=torch.channels_last)"
    return f"{text}.requires_grad_()" if fake.requires_grad else text


def _literal(given: Any) -> str:
    """A Python literal; a symbol becomes the number that it stands for in this graph."""
    if isinstance(given, (tuple, list)):
        return f"({', '.join(map(_literal, given))})"
    return repr(graph_compat.hint(value(given)))
