"""RReLU and dropout that are fused in training: their draws are new, in their bounds, and the backward has the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from faults import draws_alike, loses_input_gradients, scales
from outcomes import equal_models, seed_all
from pairs import Pair, image
from torch import nn
from variants import SHARED, catches, layers


class Random(Pair):
    """RReLU with fresh bounds for u = bn1(conv1(x)), which comes out too; then dropout behind a ReLU."""

    def __init__(self, p=0.4, lower=0.2, upper=0.6):
        super().__init__()
        self.relu, self.drop = nn.RReLU(lower, upper), nn.Dropout(p)

    def forward(self, x):
        y = self.first(x)
        return y, self.drop(F.relu(self.bn2(self.conv2(x)) + x))


def ran(model, x):
    seed_all(3)
    return [y.detach() for y in model(x)]


@catches(draws_alike, variants=SHARED)
def test_draws(make):
    model, plain = equal_models(Random, training=True)
    fused, x = make(model), image(4, size=12)
    u = plain.bn1(plain.conv1(x)).detach()
    v = F.relu(plain.bn2(plain.conv2(x)) + x).detach()
    first, dropped = (y.detach() for y in fused(x))
    second, dropped_again = (y.detach() for y in fused(x))
    ratio = (first / u)[u < 0]
    assert 0.2 <= ratio.min() < 0.25 and 0.55 < ratio.max() <= 0.6 and abs(ratio.mean() - 0.4) < 0.02
    torch.testing.assert_close(first[u > 0], u[u > 0])
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], v[kept] / 0.6)
    assert abs(kept[v > 0].double().mean() - 0.6) < 0.06
    assert not torch.equal(first, second) and not torch.equal(kept, dropped_again != 0)
    for ours, theirs in zip(ran(fused, x), ran(fused, x)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)  # reproducible from the seed
    assert layers(fused) == {"conv+bn+rrelu": 1, "conv+bn+add+relu+dropout": 1}


@catches(loses_input_gradients, variants=SHARED)
def test_gradients_use_the_slopes_that_were_drawn(make):
    """In eval of the BatchNorms, y = u * slope and the gradient of u is the slope: dy/du = y / u."""
    model, plain = equal_models(Random, training=True)
    fused = make(model)
    for norms in (model.bn1, model.bn2, plain.bn1, plain.bn2):
        norms.eval()
    x = image()
    z = plain.conv1(x).detach()
    leaf = x.clone().requires_grad_()
    y, dropped = fused(leaf)
    u = plain.bn1(z)
    slope = torch.where(u > 0, 1.0, y / u).detach()
    got = torch.autograd.grad(y.pow(2).sum(), leaf, retain_graph=True, allow_unused=True)[0]
    again = x.clone().requires_grad_()
    expected = torch.autograd.grad((plain.bn1(plain.conv1(again)) * slope).pow(2).sum(), again)[0]
    assert got is not None
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    mask = (dropped != 0).double() / 0.6
    got = torch.autograd.grad(dropped.pow(2).sum(), leaf)[0]
    expected = torch.autograd.grad((F.relu(plain.bn2(plain.conv2(again)) + again) * mask.detach()).pow(2).sum(), again)[
        0
    ]
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("p", [0.0, 1.0])
@catches(scales, variants=SHARED)
def test_bounds_that_leave_nothing_to_draw(make, p):
    """Equal bounds of RReLU, and dropout of nothing and of everything, are torch's values."""
    model, plain = equal_models(lambda: Random(p, 0.3, 0.3), training=True)
    fused, x = make(model), image()
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-9)
