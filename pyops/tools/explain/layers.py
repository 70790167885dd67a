"""Summarize a model layer by layer: what each layer computes for an input of a given shape.

A copy of the model runs on the meta device, which stores no values, so that a summary costs neither memory nor
arithmetic. A layer is an innermost module that ran. MACs are the multiply-adds of convolutions and matrix
multiplications, half of what torch's FlopCounterMode counts; ops/flops.py extends it to our operators.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ...nn import AddAct, BNAct2d, ConvBNAct2d
from ...ops.catalogue import Sizes

GEOMETRY = ("kernel_size", "stride", "padding", "dilation")
FUSED_MODULES = (ConvBNAct2d, BNAct2d, AddAct)
Result = TypeVar("Result")


@dataclass
class Layer:
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
    backend: str | None = None  # explain.py fills in this and what follows, from the layer's convolutions
    config: str | None = None
    bytes: int = 0
    lower_bound_us: float | None = None
    measured_us: float | None = None


@dataclass
class LayerSummary:
    """The layers in the order in which they ran, and the totals of the model; a shared parameter counts once."""

    input: Sizes
    layers: list[Layer]
    parameters: int
    macs: int

    @property
    def convolution_macs(self) -> int:
        return sum(layer.macs for layer in self.layers if "Conv" in layer.kind)

    def as_dict(self) -> dict:
        """The summary for JSON."""
        totals = {"parameters": self.parameters, "macs": self.macs, "convolution_macs": self.convolution_macs}
        return {"input": self.input, "layers": [vars(layer) for layer in self.layers], "totals": totals}


def summarize(model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224)) -> LayerSummary:
    """Runs a copy of the model in eval mode on an input of this shape, in the model's dtype.

    A model that cannot run on the meta device runs on its own device, on zeros.
    Raises what the model raises for such an input.
    """
    return on_shapes(_summarize, model, input_shape)


def on_shapes(
    run: Callable[[nn.Module, Tensor], Result], model: nn.Module, input_shape: Sequence[int], training: bool = False
) -> Result:
    """run(copy of the model, input) on the meta device; where that fails, on zeros.

    The copy is in eval mode and without gradients, or in training mode and with them.
    """
    like = next(model.parameters(), torch.empty(0))
    shape = tuple(input_shape)
    try:
        return _on(run, _meta_copy(model), torch.empty(shape, dtype=like.dtype, device="meta"), training)
    except Exception:  # an operator may need values; an error of the model or the shape is raised again below
        zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return _on(run, copy.deepcopy(model), zeros, training)


def _on(run: Callable[[nn.Module, Tensor], Result], model: nn.Module, input: Tensor, training: bool) -> Result:
    with torch.set_grad_enabled(training), torch.device(input.device):
        return run(model.train(training), input)


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are on meta: deepcopy takes an object in its memo as copied already."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t.detach().to("meta").requires_grad_(t.requires_grad) for t in tensors})


def _summarize(model: nn.Module, input: Tensor) -> LayerSummary:
    layers: list[Layer] = []
    started: list[tuple[int, int]] = []  # for each module that is running: layers and FLOP when it began
    counted: set[int] = set()  # ids of the parameters that are counted in a layer
    flops = FlopCounterMode(display=False)

    def enter(module, arguments):
        started.append((len(layers), flops.get_total_flops()))

    def leave(name):
        def hook(module, arguments, output):
            layers_before, flops_before = started.pop()
            if len(layers) == layers_before:  # no module inside it ran
                macs = (flops.get_total_flops() - flops_before) // 2
                layers.append(_layer(name, module, _shape(arguments), _shape(output), counted, macs))

        return hook

    inside = {id(child) for fused in model.modules() if isinstance(fused, FUSED_MODULES) for child in fused.children()}
    for name, module in model.named_modules():
        if id(module) in inside:
            continue  # a fused module does not call its children
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave(name))
    with flops:
        model(input)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return LayerSummary(tuple(input.shape), layers, parameters, flops.get_total_flops() // 2)


def _layer(name: str, module: nn.Module, input: Sizes, output: Sizes, counted: set[int], macs: int) -> Layer:
    new = {id(parameter): parameter.numel() for parameter in module.parameters() if id(parameter) not in counted}
    counted.update(new)
    rank = max(len(output) - 2, 1)
    geometry: dict[str, Any] = {key: _sizes(getattr(module, key, None), rank) for key in GEOMETRY}
    return Layer(
        name, type(module).__name__, **geometry, input=input, output=output, parameters=sum(new.values()), macs=macs
    )


def _sizes(value: object, rank: int) -> Sizes | str | None:
    """A module's attribute as one size per dimension; None if it is no geometry."""
    if isinstance(value, int):
        return (value,) * rank
    if isinstance(value, (tuple, list)) and all(isinstance(size, int) for size in value):
        return tuple(value)
    return value if isinstance(value, str) else None


def _shape(value: object) -> Sizes:
    """The shape of the first tensor; () if there is none."""
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else ()
