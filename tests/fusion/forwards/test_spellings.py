"""Layers of two modules in every spelling: which convolution takes what, by its name, and residuals of every shape."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from outcomes import agree, equal_models
from pairs import Pair, image
from torch import nn

import atrous


def trunk(s, x):
    return s.bn1(s.conv1(x))


def iadd(s, x, y):
    out = trunk(s, x)
    out += y
    return F.relu_(out)


def own_residual(s, x, y):
    u = trunk(s, x)
    return F.relu(u + u)


def used_twice(s, x, y):
    u = trunk(s, x)
    return F.relu(u) * u


def convolution_used(s, x, y):
    z = s.conv1(x)
    return F.relu(s.bn1(z)) + z


SPELLINGS = {  # name: (forward, {path: pattern} of what is fused; a sum has no path)
    "conv_bn": (lambda s, x, y: trunk(s, x), {"conv1": "conv+bn"}),
    "conv_act": (lambda s, x, y: s.relu(s.conv1(x)), {"conv1": "conv+relu"}),
    "bn_act": (lambda s, x, y: s.relu(s.bn1(x)), {"bn1": "bn+relu"}),
    "bn_add_act": (lambda s, x, y: s.relu(s.bn1(x) + y), {"bn1": "bn+add+relu"}),
    "module": (lambda s, x, y: s.relu(trunk(s, x)), {"conv1": "conv+bn+relu"}),
    "F.relu": (lambda s, x, y: F.relu(trunk(s, x), inplace=True), {"conv1": "conv+bn+relu"}),
    "torch.relu": (lambda s, x, y: torch.relu(trunk(s, x)), {"conv1": "conv+bn+relu"}),
    ".relu": (lambda s, x, y: trunk(s, x).relu(), {"conv1": "conv+bn+relu"}),
    ".relu_": (lambda s, x, y: trunk(s, x).relu_(), {"conv1": "conv+bn+relu"}),
    "F.leaky_relu": (lambda s, x, y: F.leaky_relu(trunk(s, x), 0.2), {"conv1": "conv+bn+leaky_relu"}),
    "negative_slope": (lambda s, x, y: F.leaky_relu(trunk(s, x), negative_slope=0.3), {"conv1": "conv+bn+leaky_relu"}),
    "F.rrelu": (lambda s, x, y: F.rrelu(trunk(s, x), 0.1, 0.4, training=s.training), {"conv1": "conv+bn+rrelu"}),
    "F.prelu": (lambda s, x, y: F.prelu(trunk(s, x), s.prelu.weight), {"conv1": "conv+bn+prelu"}),
    "before": (lambda s, x, y: s.prelu(trunk(s, x) + y), {"conv1": "conv+bn+add+prelu"}),
    "before, left": (lambda s, x, y: s.relu(y + trunk(s, x)), {"conv1": "conv+bn+add+relu"}),
    "torch.add": (lambda s, x, y: s.relu(torch.add(trunk(s, x), y)), {"conv1": "conv+bn+add+relu"}),
    ".add": (lambda s, x, y: s.relu(y.add(trunk(s, x))), {"conv1": "conv+bn+add+relu"}),
    ".add_": (lambda s, x, y: s.relu(trunk(s, x).add_(y)), {"conv1": "conv+bn+add+relu"}),
    "iadd": (iadd, {"conv1": "conv+bn+add+relu"}),
    "alpha=1": (lambda s, x, y: s.relu(torch.add(trunk(s, x), y, alpha=1)), {"conv1": "conv+bn+add+relu"}),
    "no activation": (lambda s, x, y: x + trunk(s, x), {"conv1": "conv+bn+add"}),
    "after": (lambda s, x, y: s.relu(trunk(s, x)) + y, {"conv1": "conv+bn+relu+add"}),
    "two activations": (
        lambda s, x, y: F.relu(s.relu(trunk(s, x)) + y), {"conv1": "conv+bn+relu", "": "add+relu"}
    ),
    "both sides": (
        lambda s, x, y: s.prelu(s.bn2(s.conv2(x)) + trunk(s, y)), {"conv2": "conv+bn+add+prelu", "conv1": "conv+bn"}
    ),
    "add_act": (lambda s, x, y: s.relu(x + y), {"": "add+relu"}),
    # not fused as a whole, with the same values
    "alpha=2": (lambda s, x, y: s.relu(torch.add(trunk(s, x), y, alpha=2)), {"conv1": "conv+bn"}),
    "a number": (lambda s, x, y: s.relu(trunk(s, x) + 1.0), {"conv1": "conv+bn"}),
    "dropout between": (lambda s, x, y: s.relu(s.bn1(F.dropout(s.conv1(x), 0.5, True) * 0)), {"bn1": "bn+relu"}),
    "its own residual": (own_residual, {"conv1": "conv+bn"}),
    "used twice": (used_twice, {"conv1": "conv+bn"}),
    "convolution used": (convolution_used, {"bn1": "bn+relu+add"}),
}  # fmt: skip


class Spelled(Pair):
    def __init__(self, spelling):
        super().__init__()
        self.spelling = spelling

    def forward(self, x, y):
        return self.spelling(self, x, y)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name):
    spelling, expected = SPELLINGS[name]
    model, plain = equal_models(lambda: Spelled(spelling))
    fused = atrous.fuse(model)
    agree(fused, plain, image(), image())
    layers = {layer.path: layer.pattern for layer in fused.fusion_report.sites if layer.fused}
    if name == "both sides" and layers.get("conv1") == "conv+bn+add+prelu":  # either may take the sum
        layers = {"conv2": layers["conv1"], "conv1": layers["conv2"]}
    named = {path if path in ("conv1", "conv2", "bn1") else "": pattern for path, pattern in layers.items()}
    assert named == expected, fused.fusion_report


RESIDUALS = {
    "one pixel": lambda: torch.randn(1, 4, 1, 1),
    "one channel": lambda: torch.randn(2, 1, 6, 6),
    "three dimensions": lambda: torch.randn(4, 6, 6),
    "a scalar": lambda: torch.tensor(0.5),
    "integers": lambda: torch.randint(-3, 3, (4, 6, 6)),
    "another dtype": lambda: image(dtype=torch.float32),
    "wider than the result": lambda: torch.randn(3, 2, 4, 6, 6),
    "another layout": lambda: image().contiguous(memory_format=torch.channels_last),
    "requires gradients": lambda: image().requires_grad_(),
}


@pytest.mark.parametrize("freeze", [False, True], ids=["fused", "frozen"])
@pytest.mark.parametrize("name", ["before, left", "iadd", "after"])
def test_residuals(name, freeze):
    """One fused model in turn with residuals that broadcast, are of another dtype, or of more dimensions."""
    model, plain = equal_models(lambda: Spelled(SPELLINGS[name][0]))
    plain.requires_grad_(False)
    fused = atrous.fuse(model, freeze=freeze)
    for kind, residual in RESIDUALS.items():
        if kind == "wider than the result" and name == "iadd":
            continue  # refused by torch
        r = residual()
        r = r.double() if r.dtype is torch.float32 and kind != "another dtype" else r
        agree(fused, plain, image(), r)


def test_other_ranks():
    """A convolution takes an image without a batch; BatchNorm1d and BatchNorm3d are no layers of ours."""

    class Ranks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn1, self.bn3 = nn.Conv2d(4, 4, 3), nn.BatchNorm1d(4), nn.BatchNorm3d(4)

        def forward(self, x):
            y = F.relu(self.conv(x[0]))
            return F.relu(self.bn1(y[None].flatten(2))), F.relu(self.bn3(x[:, :, None]))

    for training in (False, True):
        model, plain = equal_models(Ranks, training)
        agree(atrous.fuse(model), plain, image())
