"""Weights that something else computes: pruning, weight and spectral norm, parametrizations, low-rank adapters."""

from __future__ import annotations

import pytest
import torch
from faults import old_parameters, stale
from outcomes import agree, equal_models
from pairs import BOTH, Pair, image
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from variants import SHARED, catches, epilogues, layers


class LowRank(nn.Module):
    """A convolution with a low-rank addition, as peft makes one."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = nn.Conv2d(4, 2, 3, padding=1, bias=False), nn.Conv2d(2, 4, 1, bias=False)
        self.scaling, self.merged = 0.5, False

    def forward(self, x):
        y = self.base_layer(x)
        return y if self.merged else y + self.lora_B(self.lora_A(x)) * self.scaling


class Symmetric(nn.Module):
    def forward(self, w):
        return (w + w.flip(3)) / 2


def adapt(model):
    torch.manual_seed(1)
    model.conv2 = LowRank(model.conv2).double().train(model.training)


def spectral(module):
    torch.manual_seed(1)
    parametrizations.spectral_norm(module)


def old_spectral(module):
    torch.manual_seed(1)
    nn.utils.spectral_norm(module)


def shrink(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)


# name: (what is done, how it is undone or None)
KINDS = {
    "prune": (lambda m: prune.l1_unstructured(m.conv1, "weight", 0.4), lambda m: prune.remove(m.conv1, "weight")),
    "prune channels": (lambda m: prune.ln_structured(m.conv2, "weight", 0.5, n=2, dim=0), None),
    "prune slopes": (lambda m: prune.l1_unstructured(m.prelu, "weight", 0.5), None),
    "weight_norm": (
        lambda m: parametrizations.weight_norm(m.conv1),
        lambda m: parametrize.remove_parametrizations(m.conv1, "weight"),
    ),
    "old weight_norm": (lambda m: nn.utils.weight_norm(m.conv1), lambda m: nn.utils.remove_weight_norm(m.conv1)),
    "spectral_norm": (lambda m: spectral(m.conv2), None),
    "old spectral_norm": (lambda m: old_spectral(m.conv2), None),
    "parametrized gamma": (lambda m: parametrize.register_parametrization(m.bn1, "weight", nn.Softplus()), None),
    "parametrized twice": (
        lambda m: [parametrize.register_parametrization(m.conv1, "weight", Symmetric()) for _ in "12"],
        lambda m: parametrize.remove_parametrizations(m.conv1, "weight", leave_parametrized=False),
    ),
    "low rank": (adapt, lambda m: setattr(m.conv2, "merged", True)),
}


def step(*models):
    """A step of gradient descent on each."""
    for model in models:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@catches(stale, gates=("fused",))
def test_after_the_first_call(make, kind):
    apply, undo = kind
    fused, plain = make.pair(equal_models(Pair))
    x = image()
    agree(fused, plain, x)
    for change in (apply, undo):
        if change is not None:
            for model in (fused, plain):
                change(model)
                shrink(model.eval())
            agree(fused, plain, x)
    assert layers(fused)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@catches(old_parameters, variants=SHARED)
def test_before_fuse(make, kind):
    """Not frozen: torch refuses to copy a model with a weight that was computed by hooks.

    Three steps of training, the computed weight following its parameters, then eval.
    """
    model, plain = equal_models(Pair, training=True)
    kind[0](model), kind[0](plain)
    fused = make(model)
    for _ in range(3):
        agree(fused, plain, image())
        step(fused, plain)
    fused.eval(), plain.eval()
    agree(fused, plain, image())
    assert layers(fused)


@catches(stale, variants=SHARED)
def test_fused_again_when_it_is_undone(make):
    """Computed weights are fused as well: the convolution takes whatever tensor is its weight."""
    model, plain = equal_models(Pair)
    fused = make(model)
    for change in (lambda m: parametrizations.weight_norm(m.conv1),
                   lambda m: parametrize.remove_parametrizations(m.conv1, "weight")):  # fmt: skip
        change(model), change(plain)
        agree(fused, plain, image())
        with torch.no_grad():
            assert epilogues(fused, image()) == 2
    assert layers(fused) == BOTH
