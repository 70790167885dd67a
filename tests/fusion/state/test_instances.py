"""Several instances of one class, of other weights and widths: Dynamo keeps its graphs by code, which is one."""

from __future__ import annotations

import pytest
import torch
from faults import first_instance
from outcomes import agree, randomize
from pairs import BOTH, Pair, image
from variants import catches, epilogues, layers


def instances(widths, training=False):
    """Two lists of equal models, each of its own weights."""
    lists = []
    for _ in range(2):
        torch.manual_seed(0)
        lists.append([randomize(Pair(width)).double().train(training) for width in widths])
    return lists


@pytest.mark.parametrize("widths", [[4, 4], [4, 6, 4], [4] * 12], ids=["2", "2 widths", "12"])
@catches(first_instance())
def test_instances(make, widths):
    """All are fused, and each computes with its own weights, in whatever order they are called."""
    models, plains = instances(widths)
    pairs = [make.pair(pair) for pair in zip(models, plains)]
    x = image()
    for fused, plain in [*pairs, *pairs[::-1]]:
        agree(fused, plain, x)
    for fused, plain in pairs:
        assert layers(fused) == BOTH
        with torch.no_grad():
            assert epilogues(fused, x) == 2
            fused.conv1.weight.mul_(1.5), plain.conv1.weight.mul_(1.5)
    for fused, plain in pairs:
        agree(fused, plain, x)


@catches(first_instance(), training=True, gates=("frozen",))
def test_instances_train(make, training):
    models, plains = instances([4, 4, 6], training)
    pairs = [make.pair(pair) for pair in zip(models, plains)]
    for _ in range(2):
        for fused, plain in pairs:
            agree(fused, plain, image())
    assert all(layers(fused) == BOTH for fused, _ in pairs)


@catches(first_instance())
def test_two_copies_of_one_model(make):
    """Fused twice: each has a report of its own; frozen copies differ once one of them is written."""
    models, plains = instances([4, 4])
    first, second = make(models[0]), make(models[0])
    agree(*make.pair((models[1], plains[1])), image())
    for fused in (first, second):
        for _ in range(2):
            with torch.no_grad():
                torch.testing.assert_close(fused(image() * 0 + 1), plains[0](image() * 0 + 1), rtol=1e-9, atol=1e-9)
        assert layers(fused) == BOTH
    with torch.no_grad():
        first.conv1.weight.mul_(2)
        assert torch.equal(first(image() * 0 + 1), second(image() * 0 + 1)) != make.frozen


@catches(first_instance(), gates=("frozen",))
def test_instances_behind_a_break_in_the_graph(make):
    """The frames behind a break are those of the class: none computes with another instance's weights."""

    class Broken(Pair):
        def forward(self, x):
            y = self.first(x)
            torch._dynamo.graph_break()
            return self.second(y, x)

    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append([randomize(Broken()).double().eval() for _ in range(10)])
    pairs = [make.pair(pair) for pair in zip(*models)]
    for fused, plain in [*pairs, *pairs]:
        agree(fused, plain, image())
    assert all(layers(fused) for fused, _ in pairs)
