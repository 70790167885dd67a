"""Whatever a forward reads may change after fuse(), and after the first call: the next call sees it."""

from __future__ import annotations

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from faults import stale, traced
from outcomes import agree, equal_models
from pairs import Pair, image, written
from torch import nn
from variants import SHARED, catches, layers

GLOBAL = {"scale": 1.0}


def prepare(s):
    s.order, s.table, s.flags = [0, 1], {"scale": 1.0, "nested": [{"a": 2}]}, {"skip"}
    s.settings, s.function, s.size = types.SimpleNamespace(depth=1, act="softplus"), torch.sin, (1, 2)
    s.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2))])
    s.drop = nn.Dropout(0.0)


def forward(s, x):
    y = s.first(x)
    for i in s.order:
        y = y * 0.5 if i == 0 else y + 0.1
    y = y * s.table["scale"] + s.table["nested"][0]["a"] * GLOBAL["scale"]
    if "skip" in s.flags:
        y = y + x
    for block in s.blocks[: s.settings.depth]:
        y = block(y)
    y = getattr(F, s.settings.act)(y) + len(s.size)
    return s.function(s.second(s.drop(y), x))


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def double_forward(s):
    s.bn1.forward = lambda x: x * 2


CHANGES = {
    "list order": lambda s: s.order.reverse(),
    "list appended": lambda s: s.order.append(0),
    "list replaced": lambda s: setattr(s, "order", []),
    "dict value": lambda s: s.table.update(scale=2.0),
    "nested value": lambda s: s.table["nested"][0].update(a=3),
    "set": lambda s: s.flags.clear(),
    "object": lambda s: setattr(s.settings, "act", "gelu"),
    "depth": lambda s: setattr(s.settings, "depth", 0),
    "function": lambda s: setattr(s, "function", torch.cos),
    "tuple": lambda s: setattr(s, "size", (1, 2, 3)),
    "eps": lambda s: setattr(s.bn1, "eps", 0.1),
    "slope": lambda s: setattr(s.blocks[0][2], "negative_slope", 0.7),
    "dilation": lambda s: (setattr(s.conv1, "dilation", (2, 2)), setattr(s.conv1, "padding", (2, 2))),
    "padding mode": lambda s: setattr(s.conv1, "padding_mode", "reflect"),
    "dropout": lambda s: (setattr(s.drop, "p", 1.0), s.drop.train()),
    "activation swapped": lambda s: setattr(s, "relu", nn.LeakyReLU(0.5)),
    "activation that no layer has": lambda s: setattr(s, "relu", nn.Sigmoid()),
    "BatchNorm swapped": lambda s: setattr(s, "bn2", nn.BatchNorm2d(4).double().eval()),
    "BatchNorm made Identity": lambda s: setattr(s, "bn1", nn.Identity()),
    "convolution swapped": lambda s: setattr(s, "conv2", s.blocks[0][0]),
    "convolution's class": lambda s: setattr(s.conv1, "__class__", Doubled),
    "child's forward": double_forward,
    "child appended": lambda s: s.blocks[0].append(nn.Tanh()),
    "child deleted": lambda s: s.blocks[0].pop(1),
    "parameter replaced": lambda s: setattr(s.conv1, "weight", nn.Parameter(s.conv1.weight.detach() * 2)),
    "bias removed": lambda s: setattr(s.conv1, "bias", None),
    "parameter in place": lambda s: s.conv1.weight.mul_(1.5),
    "slope in place": lambda s: s.prelu.weight.add_(0.5),
    "statistics": lambda s: s.bn2.running_mean.fill_(0.7),
    "one BatchNorm's mode": lambda s: s.bn1.train(),
    "statistics removed": lambda s: (setattr(s.bn1, "running_mean", None), setattr(s.bn1, "running_var", None)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@catches(stale)
def test_a_change_after_the_first_call(make, change):
    model, plain = equal_models(written(forward, prepare))
    fused = make.pair((model, plain))[0]
    x = image()
    agree(fused, plain, x)
    with torch.no_grad():
        before = plain(x)
        change(fused)
        change(plain)
        assert not torch.equal(before, copy.deepcopy(plain)(x))
    agree(fused, plain, x)
    assert layers(fused)


TRAINING = ["dict value", "activation swapped", "BatchNorm swapped", "parameter replaced", "parameter in place", "eps"]


@pytest.mark.parametrize("name", TRAINING)
@catches(stale, variants=SHARED)
def test_a_change_while_training(make, name):
    """The change is made to the model that was fused, which has one state with the fused one."""
    model, plain = equal_models(written(forward, prepare), training=True)
    fused = make(model)
    agree(fused, plain, image())
    for changed in (model, plain):
        with torch.no_grad():
            CHANGES[name](changed)
    agree(fused, plain, image())


@catches(traced)
def test_a_global_and_a_class_attribute(make, monkeypatch):
    class Scaled(Pair):
        scale = 1.0

        def forward(self, x):
            return self.second(self.first(x) * self.scale * GLOBAL["scale"], x)

    fused, plain = make.pair(equal_models(Scaled))
    x = image()
    agree(fused, plain, x)
    before = plain(x)
    monkeypatch.setattr(Scaled, "scale", 2.0)
    agree(fused, plain, x)
    monkeypatch.setitem(GLOBAL, "scale", 3.0)
    agree(fused, plain, x)
    assert not torch.equal(before, plain(x))


@catches(traced)
def test_a_forward_replaced_in_the_class(make, monkeypatch):
    class Replaced(Pair):
        def forward(self, x):
            return self.second(self.first(x), x)

    fused, plain = make.pair(equal_models(Replaced))
    agree(fused, plain, image())
    monkeypatch.setattr(Replaced, "forward", lambda self, x: self.first(x) * 2)
    agree(fused, plain, image())


@catches(stale, variants=SHARED)
def test_children_in_a_list_and_a_closure(make):
    """Children that the model reaches in other ways than by attributes of modules.

    Not frozen: a copy's closures and bound methods are those of the model itself, for deepcopy too.
    """

    def build():
        model = Closure()
        model.reached = [model.conv1, model.bn1, model.relu]
        model.table = {"second": model.second}
        bn = model.bn2
        model.function = lambda y: bn(model.conv2(y))
        return model

    class Closure(Pair):
        def forward(self, x):
            y = x
            for child in self.reached:
                y = child(y)
            return self.prelu(self.function(y) + x) + self.table["second"](y, x)

    fused, plain = make.pair(equal_models(build))
    agree(fused, plain, image())
    with torch.no_grad():
        for model in (fused, plain):
            model.bn1.running_mean.add_(1)
            model.bn2.weight.mul_(2)
            model.conv1.weight = nn.Parameter(model.conv1.weight * 2)
    agree(fused, plain, image())
