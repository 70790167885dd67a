"""The walk of an input through a model, layer by layer: what each layer computes, on shapes alone.

A twin of the model runs on the meta device, which holds no numbers, so that a walk costs neither memory nor arithmetic.
A row is an innermost module that ran; MACs are the multiply-adds of convolutions and matrix products, half of what
torch's own FlopCounterMode counts; it is told of what fused models call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ...nn import AddAct, BNAct2d, ConvBNAct2d
from .layer_table import table

GEOMETRY = ("kernel_size", "stride", "padding", "dilation")
SITES = (ConvBNAct2d, BNAct2d, AddAct)
Sizes = tuple[int, ...]
Result = TypeVar("Result")


def _convolution_flops(input: Sizes, weight: Sizes, *arguments, out_shape: Sizes, **named) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


def _winograd_flops(input: Sizes, *arguments, out_shape: Sizes, **named) -> int:
    return 2 * prod(out_shape) * input[1] * 9  # of the 3x3 convolution that it stands for


FLOPS = {
    torch.ops.atrous._conv_epilogue: _convolution_flops,
    torch.ops.atrous_triton._conv_epilogue: _convolution_flops,
    torch.ops.atrous._winograd_epilogue: _winograd_flops,
}
if torch.backends.mkldnn.is_available():  # what a frozen model's row `library` calls on CPU
    FLOPS[torch.ops.mkldnn._convolution_pointwise] = _convolution_flops


@dataclass
class Row:
    """One layer; kernel_size, stride, padding and dilation are None where it has none. The sizes include the batch."""

    name: str
    kind: str
    kernel_size: Sizes | None
    stride: Sizes | None
    padding: Sizes | str | None
    dilation: Sizes | None
    input: Sizes
    output: Sizes
    parameters: int
    macs: int
    backend: str | None = None  # from here on: what explain.py knows of its convolution
    config: str | None = None
    bytes: int = 0
    floor_us: float | None = None
    measured_us: float | None = None


@dataclass
class Walk:
    """The rows in the order in which they ran, and the totals of the model; a shared parameter counts once."""

    input: Sizes
    rows: list[Row]
    parameters: int
    macs: int

    @property
    def convolution_macs(self) -> int:
        return sum(row.macs for row in self.rows if "Conv" in row.kind)

    def render(self, width: int = 80, more: Iterable[str] = ()) -> str:
        """The walk as a table for a terminal of this width, grouped by stage; behind it the sums, and more of them."""
        return table(self, width, more)

    def as_dict(self) -> dict:
        """The walk for JSON."""
        totals = {"parameters": self.parameters, "macs": self.macs, "convolution_macs": self.convolution_macs}
        return {"input": self.input, "rows": [vars(row) for row in self.rows], "totals": totals}


def walk(model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224)) -> Walk:
    """Sends an input of this shape, in the model's dtype, through a copy of the model in eval mode.

    A model that cannot run on the meta device runs on its own device, on zeros.
    Raises what the model raises for such an input.
    """
    return on_shapes(_walk, model, input_shape)


def on_shapes(
    run: Callable[[nn.Module, Tensor], Result], model: nn.Module, input_shape: Sequence[int], training: bool = False
) -> Result:
    """run(twin, input) on the meta device with a copy of the model; where that fails, on zeros.

    The copy is in eval mode and without gradients, or in training mode and with them.
    """
    like = next(model.parameters(), torch.empty(0))
    shape = tuple(input_shape)
    try:
        return _on(run, _meta_twin(model), torch.empty(shape, dtype=like.dtype, device="meta"), training)
    except Exception:  # not every operator knows shapes alone; a mistake in the model or the shape shows again here
        zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return _on(run, copy.deepcopy(model), zeros, training)


def _on(run: Callable[[nn.Module, Tensor], Result], twin: nn.Module, input: Tensor, training: bool) -> Result:
    with torch.set_grad_enabled(training), torch.device(input.device):
        return run(twin.train(training), input)


def _meta_twin(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are shapes only: deepcopy takes what its memo holds as copied already."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t.detach().to("meta").requires_grad_(t.requires_grad) for t in tensors})


def _walk(twin: nn.Module, input: Tensor) -> Walk:
    rows: list[Row] = []
    started: list[tuple[int, int]] = []  # of the modules that run now: rows and FLOP when each began
    counted: set[int] = set()  # ids of the parameters that a row has shown
    flops = FlopCounterMode(display=False, custom_mapping=FLOPS)

    def enter(module, arguments):
        started.append((len(rows), flops.get_total_flops()))

    def leave(name):
        def hook(module, arguments, output):
            rows_before, flops_before = started.pop()
            if len(rows) == rows_before:  # nothing inside it ran
                macs = (flops.get_total_flops() - flops_before) // 2
                rows.append(_row(name, module, _shape(arguments), _shape(output), counted, macs))

        return hook

    inside = {id(child) for site in twin.modules() if isinstance(site, SITES) for child in site.children()}
    for name, module in twin.named_modules():
        if id(module) in inside:
            continue  # a fused site does not call its children
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave(name))
    with flops:
        twin(input)
    parameters = sum(parameter.numel() for parameter in twin.parameters())
    return Walk(tuple(input.shape), rows, parameters, flops.get_total_flops() // 2)


def _row(name: str, module: nn.Module, input: Sizes, output: Sizes, counted: set[int], macs: int) -> Row:
    new = {id(parameter): parameter.numel() for parameter in module.parameters() if id(parameter) not in counted}
    counted.update(new)
    rank = max(len(output) - 2, 1)
    geometry: dict[str, Any] = {key: _sizes(getattr(module, key, None), rank) for key in GEOMETRY}
    return Row(
        name, type(module).__name__, **geometry, input=input, output=output, parameters=sum(new.values()), macs=macs
    )


def _sizes(value: object, rank: int) -> Sizes | str | None:
    """A module's attribute as one size a dimension; None for what is no geometry."""
    if isinstance(value, int):
        return (value,) * rank
    if isinstance(value, (tuple, list)) and all(isinstance(size, int) for size in value):
        return tuple(value)
    return value if isinstance(value, str) else None


def _shape(value: object) -> Sizes:
    """The shape of the first tensor; () where there is none."""
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else ()
