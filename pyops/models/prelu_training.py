"""PReLU networks trained as in its paper: weight initialization, and parameter groups without decay of the slopes.

Source: He et al., Delving deep into rectifiers (arXiv:1502.01852).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..core import checks
from ..core.torch_compat import NormBase

SLOPE = 0.25  # the paper's initial slope
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # weight[0] holds the n inputs that one output sums
NOT_DECAYED = (nn.PReLU, NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def init_prelu_kaiming_(model: nn.Module) -> nn.Module:
    """Initializes weights, biases and slopes so that the signal keeps its variance through layers with PReLU.

        w ~ N(0, 2 / ((1 + a^2) n))        b = 0        slope = a = 0.25

    n = k^2 c_in / groups is the number of terms of one output, c_in for nn.Linear (fan_in, the paper's forward case). a
    is the slope of the activation before a layer: 0.25 for every layer, since every slope starts there. As in the
    paper, the first layer, which no activation precedes, is no exception: its factor applies once and does not grow
    with the depth. After a ReLU the variance is 6% too small.

    Initialized: nn.Conv1d, nn.Conv2d, nn.Conv3d and nn.Linear (a convolution that covers its input), nn.PReLU, and
    their subclasses. Unchanged: normalization layers, which undo the scale of the weights before them; all other
    modules, among them transposed convolutions; and parameters with requires_grad=False, which may come from a
    checkpoint. Draws from torch's global generator, so torch.manual_seed reproduces them.

    Returns the model.
    Raises, before anything is changed: TypeError if model is no module; ValueError for a model without nn.PReLU, one
    without parameters that require gradients (from fuse(freeze=True)), nn.FrozenConv2d, lazy layers, and weights that
    weight_norm, pruning or a parametrization computes.
    Source: arXiv:1502.01852, section 2.2, equation 15.
    """
    _module(model)
    layers = [module for module in model.modules() if isinstance(module, WEIGHTED)]
    slopes = [module for module in model.modules() if isinstance(module, nn.PReLU)]
    if not slopes:
        raise ValueError(f"model: expected a model with nn.PReLU, got {type(model).__name__} without one")
    _check_parameters(model, [(module, "weight") for module in layers + slopes] + [(layer, "bias") for layer in layers])
    with torch.no_grad():
        for layer in layers:
            if layer.weight.requires_grad:
                nn.init.kaiming_normal_(layer.weight, a=SLOPE, mode="fan_in", nonlinearity="leaky_relu")
            if layer.bias is not None and layer.bias.requires_grad:
                layer.bias.zero_()
        for slope in slopes:
            if slope.weight.requires_grad:
                slope.weight.fill_(SLOPE)
    return model


def _check_parameters(model: nn.Module, wanted: Sequence[tuple[nn.Module, str]]) -> None:
    """Raises ValueError unless all that is to be filled in place are parameters that the modules compute with."""
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] == "weight" and buffer.dim() == 4:  # class weights are 1-D
            raise ValueError(f"model: expected weights to train, got the buffer {name}, as of nn.FrozenConv2d")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model: expected weights to train, got none that requires gradients, as of fuse(freeze=True)")
    for module, name in wanted:
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        if name not in own and getattr(module, name, module) is not None:  # weight_norm, pruning or parametrize made it
            raise ValueError(f"model: expected {name} to be a parameter, got one that is computed, in {module}")
        if name in own and is_lazy(own[name]):
            raise ValueError(f"model: expected {name} of known shape, got {module}: call the model once before")


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns the model's parameters for a torch optimizer in two groups: with weight decay and without.

    Without decay: the slopes of nn.PReLU, since decay pulls them to zero, which is ReLU; and the weights and biases of
    normalization layers (BatchNorm, SyncBatchNorm, InstanceNorm, GroupNorm, LayerNorm, RMSNorm). With decay: all
    others, among them the biases of convolutions and nn.Linear, as in torch's optimizers, and those of your modules.

    Each parameter with requires_grad=True appears once, in the order of model.named_parameters(). One that several
    modules share has no decay if any of them is a PReLU or a normalization layer. A fused model has the parameters of
    the original model. A group may be empty; optimizers accept that.

    Returns [{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}].
    Raises TypeError if model is no module or weight_decay no number; ValueError if it is negative or not finite.
    Source: arXiv:1502.01852, section 2.1, for the slopes; for normalization layers it is common practice.
    """
    _module(model)
    checks.number("weight_decay", weight_decay)
    if not 0.0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay: expected a finite number that is not negative, got {weight_decay}")
    exempt: set[int] = set()
    for module in model.modules():
        if isinstance(module, NOT_DECAYED):  # with its children: a parametrized slope is one
            exempt |= {id(parameter) for parameter in module.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in exempt], "weight_decay": 0.0},
    ]


def _module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
