"""Folding for deployment: conv and BatchNorm become one FrozenConv2d."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import nn

from ..nn import FrozenConv2d
from .twin import Generated, twin


def independent(model: nn.Module) -> nn.Module:
    """A copy with its own tensors, in eval mode, channels_last, without gradients."""
    result = copy.deepcopy(twin(model)).eval().requires_grad_(False)
    for tensor in (*result.parameters(), *result.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return result


def unfoldable(modules: list[nn.Module], calls: Counter) -> str:
    """Why a convolution and its BatchNorm, if any, must stay as they are; "" if they can be folded."""
    conv, *norms = modules
    if isinstance(conv, FrozenConv2d):
        return "it is frozen already"
    if conv.padding_mode != "zeros":
        return f"padding_mode is {conv.padding_mode!r}"
    if any(bn.running_mean is None for bn in norms):
        return "its BatchNorm has no running statistics"
    if any(calls[id(module)] != 1 for module in modules):
        return "it is used in more than one place, or may be"
    return ""


def fold(root: nn.Module, modules: list[nn.Module], backend: str) -> None:
    """Puts FrozenConv2d at every name of the convolution and nn.Identity at every name of its BatchNorm, if any."""
    replacement = {id(modules[0]): FrozenConv2d(*modules, backend=backend).eval()}  # type: ignore[arg-type]
    replacement.update({id(bn): nn.Identity().eval() for bn in modules[1:]})
    for module in list(root.modules()):
        for name, child in module._modules.items():
            if id(child) in replacement:
                module._modules[name] = replacement[id(child)]


class EvalOnly(Generated):
    """The `train` of a frozen module."""

    def __init__(self, owner: nn.Module):
        self.owner = owner

    def __call__(self, mode: bool = True) -> nn.Module:
        if mode:
            raise RuntimeError(
                "train: this model was frozen by atrous.fuse(freeze=True), its BatchNorms are folded into its "
                "convolutions; train the model that it was made from"
            )
        return type(self.owner).train(self.owner, False)
