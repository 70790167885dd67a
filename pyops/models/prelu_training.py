"""Training networks with PReLU as its paper does: where the weights start, and which parameters are decayed.

Source: He et al., Delving deep into rectifiers (arXiv:1502.01852).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from ..core import checks

SLOPE = 0.25  # where the paper starts every slope
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # weight[0] holds the n inputs that one output sums
NOT_DECAYED = (nn.PReLU, _NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def init_prelu_kaiming_(model: nn.Module) -> nn.Module:
    """Fills weights, biases and slopes so that a stack of layers with PReLU keeps the variance of its signal.

        w ~ N(0, 2 / ((1 + a^2) n))        b = 0        slope = a = 0.25

    n = k^2 c_in / groups is what one output sums, c_in for nn.Linear (fan_in, the paper's forward case). a is the slope
    of the activation in front of a layer, and one rule gives it: 0.25 for every layer, since every slope starts there.
    The paper, too, makes no exception of the first layer, which has no activation in front: the factor stands there
    once, and does not grow with the depth. Where a ReLU stands in front, the variance is 6% short.

    Filled: nn.Conv1d, nn.Conv2d, nn.Conv3d and nn.Linear (a convolution that covers its input), nn.PReLU, and what
    derives from these. Left as they are: normalisations, which undo the scale of the weights in front of them; all
    other modules, transposed convolutions among them; and parameters with requires_grad=False, which may come from a
    checkpoint. Draws from torch's own generator: torch.manual_seed reproduces them.

    Returns the model. Nothing is changed where it raises.
    Raises TypeError for what is no module; ValueError for a model without nn.PReLU, one from fuse(freeze=True), lazy
    layers, and those under weight_norm, pruning or a parametrization, whose weights are computed from others.
    Source: arXiv:1502.01852, section 2.2, equation 15.
    """
    _module(model)
    layers = [module for module in model.modules() if isinstance(module, WEIGHTED)]
    slopes = [module for module in model.modules() if isinstance(module, nn.PReLU)]
    if not slopes:
        raise ValueError(f"model: expected a model with nn.PReLU, got {type(model).__name__} without one")
    _fillable(model, [(module, "weight") for module in layers + slopes] + [(layer, "bias") for layer in layers])
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


def _fillable(model: nn.Module, wanted: Sequence[tuple[nn.Module, str]]) -> None:
    """Before anything is changed: what is filled in place must be what the module computes with."""
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] == "weight" and buffer.dim() == 4:  # nn.FrozenConv2d; class weights have 1
            raise ValueError(f"model: expected weights to train, got the buffer {name}, as of fuse(freeze=True)")
    for module, name in wanted:
        if name not in module._parameters:  # weight_norm, pruning, parametrize compute it from others
            raise ValueError(f"model: expected {name} to be a parameter, got one that is computed, in {module}")
        parameter = module._parameters[name]
        if parameter is not None and is_lazy(parameter):
            raise ValueError(f"model: expected {name} of known shape, got {module}: call the model once before")


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The model's parameters for a torch optimizer, in two groups: with weight decay, and without.

    Without: the slopes of nn.PReLU, since decay pulls them to zero, which is ReLU; and the weights and biases of
    normalisations (BatchNorm, SyncBatchNorm, InstanceNorm, GroupNorm, LayerNorm, RMSNorm). With: everything else,
    biases of convolutions and nn.Linear included, as in torch's optimizers, and parameters of your own modules.

    Each parameter with requires_grad=True comes once, in the order of model.named_parameters(). One that several
    modules share goes without decay if any of them is a PReLU or a normalisation. A fused model has the parameters
    of the model that it was made from. A group may be empty; optimizers take that.

    Returns [{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}].
    Raises TypeError for what is no module or no number; ValueError for a weight_decay that is negative or not finite.
    Source: arXiv:1502.01852, section 2.1, for the slopes; for normalisations it is the habit of the field.
    """
    _module(model)
    checks.number("weight_decay", weight_decay)
    if not 0.0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay: expected a finite number that is not negative, got {weight_decay}")
    exempt: set[int] = set()
    for module in model.modules():
        if isinstance(module, NOT_DECAYED):  # with what it holds: under a parametrization that is a child
            exempt |= {id(parameter) for parameter in module.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in exempt], "weight_decay": 0.0},
    ]


def _module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
