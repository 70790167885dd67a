"""The convolutions of a fused model, in the order in which they run: what a row is chosen for, tuned and explained by.

They are found on shapes alone, below the modules: a mode sees the primitives that the model's fused twin calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...core.spec import Epilogue, Spec
from ...fusion import fuse
from .layers import on_shapes

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """A convolution with the epilogue behind it; residual: "none", or added "before" or "after" the activation."""

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
        """The least that can be moved: input, weight, output and residual, each once."""
        outputs = 1 if self.residual == "none" else 2
        return element_size * (prod(self.input) + prod(self.weight) + outputs * prod(self.output))


def sites(model: nn.Module, input_shape: Sequence[int]) -> list[Site]:
    """The 2-D convolutions of fuse(model) in eval mode, those that it leaves alone among them, as they run.

    A model that fuse() refuses (a traced, wrapped or frozen one) is taken as it is.
    Raises what the model raises for such an input.
    """
    try:
        model = fuse(model, backend="library")  # every site is one convolution and one epilogue, on every device
    except (TypeError, ValueError):
        pass
    return on_shapes(_seen, model, input_shape)


def _seen(twin: nn.Module, input: Tensor) -> list[Site]:
    with _Watch(twin) as watch:
        twin(input)
    return watch.sites


# A convolution's arguments -> the shape of its weight, its geometry, and the epilogue in it; None for no conv2d.


def _plain(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed or weight.dim() != 4:
        return None
    return weight.shape, Spec(tuple(stride), tuple(padding), tuple(dilation), groups), Epilogue()


def _fused(input, weight, bias, stride, padding, dilation, groups, *ending):
    return weight.shape, Spec(tuple(stride), tuple(padding), tuple(dilation), groups), Epilogue(*ending)


def _winograd(input, transformed, out_channels, bias, padding, dilation, *ending):
    return (out_channels, input.shape[1], 3, 3), Spec((1, 1), tuple(padding), tuple(dilation)), Epilogue(*ending)


def _onednn(input, packed, bias, padding, stride, dilation, groups, *activation):
    return packed.shape, Spec(tuple(stride), tuple(padding), tuple(dilation), groups), Epilogue()


CONVOLUTIONS = {
    torch.ops.aten.convolution.default: _plain,
    torch.ops.atrous._conv_epilogue.default: _fused,
    torch.ops.atrous_triton._conv_epilogue.default: _fused,
    torch.ops.atrous._winograd_epilogue.default: _winograd,
}
if torch.backends.mkldnn.is_available():
    CONVOLUTIONS[torch.ops.mkldnn._convolution_pointwise.default] = _onednn
EPILOGUES = (torch.ops.atrous._epilogue.default, torch.ops.atrous_triton._epilogue.default)


class _Watch(TorchDispatchMode):
    """Notes each convolution, and the residual of the epilogue that takes its output."""

    def __init__(self, model: nn.Module):
        super().__init__()
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self.names = {id(tensor): name.removesuffix("weight").removesuffix(".") for name, tensor in tensors}
        self.made: list[Tensor] = []  # casts, layouts and packs of weights: kept, so that no other gets one's id
        self.sites: list[Site] = []
        self.z: object = None  # what the last convolution gave

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS:
            if found := CONVOLUTIONS[func](*args):
                self._note(args[0], args[1], *found)
                self.z = result
        elif func in EPILOGUES and args[0] is self.z:
            self.sites[-1] = replace(self.sites[-1], residual=_residual(Epilogue(*args[1:])))
        elif args and id(args[0]) in self.names and isinstance(result, Tensor):
            self.names[id(result)] = self.names[id(args[0])]
            self.made.append(result)
        return result

    def _note(self, input: Tensor, weight: Tensor, shape: Sizes, spec: Spec, ending: Epilogue) -> None:
        name = self.names.get(id(weight), "")
        self.sites.append(Site(name, tuple(input.shape), tuple(shape), spec, _residual(ending)))


def _residual(ending: Epilogue) -> str:
    if ending.residual is None:
        return "none"
    return "after" if ending.residual_after_act else "before"
