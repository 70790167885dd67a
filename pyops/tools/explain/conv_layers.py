"""List the convolutions of a model in the order in which they run: the units of backend selection and tuning.

They are recorded on shapes alone: a dispatch mode sees the operators that the model calls, and the report of fuse()
tells where the residual of each is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from ...core.spec import Epilogue, Spec
from ...core.torch_compat import TorchDispatchMode
from ...fusion import Site, fuse, is_fused
from ...ops.catalogue import CONVOLUTIONS, EPILOGUES, ConvCall, Sizes
from .layers import on_shapes


@dataclass(frozen=True)
class ConvLayer:
    """A convolution with its epilogue. residual: "none", or added "before" or "after" the activation."""

    name: str  # path of the convolution in the model
    input: Sizes  # (N, C, H, W)
    weight: Sizes  # (C_out, C / groups, kH, kW)
    spec: Spec
    residual: str = "none"

    @property
    def output(self) -> Sizes:
        """(N, C_out, H', W')"""
        size, kernel = (self.input[2], self.input[3]), (self.weight[2], self.weight[3])
        return (self.input[0], self.weight[0], *self.spec.output_size(size, kernel))

    @property
    def macs(self) -> int:
        return prod(self.output) * prod(self.weight[1:])

    def bytes(self, element_size: int) -> int:
        """The least memory traffic: input, weight, output and residual, each once."""
        outputs = 1 if self.residual == "none" else 2
        return element_size * (prod(self.input) + prod(self.weight) + outputs * prod(self.output))


def conv_layers(model: nn.Module, input_shape: Sequence[int]) -> list[ConvLayer]:
    """The 2-D convolutions of a model in eval mode, fused or not, in the order in which they run.

    A model that fuse() refuses (a traced, wrapped or frozen one) has no residuals but those of its own fused calls.
    Raises what the model raises for such an input.
    """
    layers = on_shapes(_record, model, input_shape)
    try:
        fused = on_shapes(_fused, model, input_shape)
    except (TypeError, ValueError):
        return layers
    residuals: dict[str, list[str]] = {}
    for layer in fused:
        residuals.setdefault(layer.path, []).append(layer.residual)
    return [_with_residual(layer, residuals.get(layer.name, [])) for layer in layers]


def _record(model: nn.Module, input: Tensor) -> list[ConvLayer]:
    with _Recorder(model) as recorder:
        model(input)
    return recorder.layers


def _fused(model: nn.Module, input: Tensor) -> list[Site]:
    fused: Any = model if is_fused(model) else fuse(model)
    fused(input)
    return [layer for graph in fused.fusion_report.graphs for layer in graph.sites if layer.fused]


def _with_residual(layer: ConvLayer, residuals: list[str]) -> ConvLayer:
    """A module that is called twice has two."""
    return replace(layer, residual=residuals.pop(0)) if residuals and layer.residual == "none" else layer


class _Recorder(TorchDispatchMode):
    """Records each convolution, and the residual of the epilogue that takes its output."""

    def __init__(self, model: nn.Module):
        super().__init__()
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self.names = {id(tensor): name.removesuffix("weight").removesuffix(".") for name, tensor in tensors}
        self.derived: list[Tensor] = []  # casts, copies and prepacked forms of weights: alive, so that ids stay unique
        self.layers: list[ConvLayer] = []
        self.z: object = None  # output of the last convolution

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS:
            if call := CONVOLUTIONS[func](*args):
                self._append(args[0], args[1], call)
                self.z = result
        elif func in EPILOGUES and args[0] is self.z:
            self.layers[-1] = replace(self.layers[-1], residual=Epilogue(*args[1:]).residual_place)
        elif args and id(args[0]) in self.names and isinstance(result, Tensor):
            self.names[id(result)] = self.names[id(args[0])]
            self.derived.append(result)
        return result

    def _append(self, input: Tensor, weight: Tensor, call: ConvCall) -> None:
        name, residual = self.names.get(id(weight), ""), call.epilogue.residual_place
        self.layers.append(ConvLayer(name, tuple(input.shape), call.weight, call.spec, residual))
