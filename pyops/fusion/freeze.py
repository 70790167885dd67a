"""fuse(freeze=True): folds each convolution and its BatchNorm into one FrozenConv2d."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import nn

from ..core.torch_compat import children
from ..nn import FrozenConv2d
from .shared_copy import Generated, shared_copy


def independent(model: nn.Module) -> nn.Module:
    """Returns a copy with its own tensors, in eval mode, channels_last and without gradients."""
    result = copy.deepcopy(shared_copy(model)).eval().requires_grad_(False)
    for tensor in (*result.parameters(), *result.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return result


def unfoldable(modules: list[nn.Module], calls: Counter) -> str:
    """Returns the reason why a convolution and its BatchNorm, if any, cannot be folded; "" if they can."""
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
    """Replaces the convolution by FrozenConv2d and its BatchNorm, if any, by nn.Identity, under all their names."""
    replacement = {id(modules[0]): FrozenConv2d(*modules, backend=backend).eval()}  # type: ignore[arg-type]
    replacement.update({id(bn): nn.Identity().eval() for bn in modules[1:]})
    for module in list(root.modules()):
        for name, child in children(module).items():
            if id(child) in replacement:
                children(module)[name] = replacement[id(child)]


class EvalOnly(Generated):
    """The `train` method of a frozen module: it raises for mode=True."""

    def __init__(self, owner: nn.Module):
        self.owner = owner

    def __call__(self, mode: bool = True) -> nn.Module:
        if mode:
            raise RuntimeError(
                "train: this model was frozen by atrous.fuse(freeze=True), its BatchNorms are folded into its "
                "convolutions; train the original model"
            )
        return type(self.owner).train(self.owner, False)
