"""Hooks of every kind: added before fuse() or after the first call, run as often as in the plain model, removed."""

from __future__ import annotations

import pytest
import torch
from faults import ignores_hooks
from outcomes import agree, assert_alike, assert_same, equal_models, outcome
from pairs import Pair, image
from torch import nn
from variants import SHARED, catches, epilogues, layers


def forward_hook(module, seen):
    return module.register_forward_hook(lambda m, args, y: seen.append("forward") or y * 2)


def observing_hook(module, seen):
    """It only reads: the value has one more user, and is the plain one."""
    return module.register_forward_hook(lambda m, args, y: seen.append(y.detach().clone()))


def pre_hook(module, seen):
    return module.register_forward_pre_hook(lambda m, args: seen.append("pre") or (args[0] + 1, *args[1:]))


def hook_with_kwargs(module, seen):
    return module.register_forward_hook(
        lambda m, args, kwargs, y: seen.append(len(kwargs)) or -y, with_kwargs=True, prepend=True
    )


def always_called(module, seen):
    return module.register_forward_hook(lambda m, args, y: seen.append("always"), always_call=True)


def backward_hook(module, seen):
    return module.register_full_backward_hook(
        lambda m, dx, dy: seen.append(dy[0].clone()) or tuple(g if g is None else g * 2 for g in dx)
    )


def backward_pre_hook(module, seen):
    return module.register_full_backward_pre_hook(lambda m, dy: seen.append("before") or (dy[0] * 3,))


def tensor_hook(module, seen):
    """A hook on the result's gradient."""

    def attach(m, args, y):
        if y.requires_grad:
            y.register_hook(lambda g: seen.append(g.clone()) or g * 2)

    return module.register_forward_hook(attach)


def parameter_hook(module, seen):
    parameter = next(module.parameters())
    if not parameter.requires_grad:
        return forward_hook(module, seen)
    return parameter.register_hook(lambda g: seen.append("parameter") or g * 2)


HOOKS = [forward_hook, observing_hook, pre_hook, hook_with_kwargs, always_called]
BACKWARD = [backward_hook, backward_pre_hook, tensor_hook, parameter_hook]
PLACES = {"conv1": "conv1", "bn1": "bn1", "prelu": "prelu", "root": ""}
BACKWARD_PLACES = [
    pytest.param("conv1"), pytest.param(""), pytest.param("bn1", marks=pytest.mark.gate),
    pytest.param("prelu", marks=pytest.mark.gate),
]  # fmt: skip


def seen_alike(ours, theirs):
    assert_same(dict(enumerate(ours)), dict(enumerate(theirs)))
    assert theirs


@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
@catches(ignores_hooks, gates=("frozen",))
def test_forward_hooks(make, hook, first):
    """On a convolution, a BatchNorm, an activation and the model; all are then removed, and all is fused again."""
    model, plain = equal_models(Pair)
    ours, theirs, x = [], [], image()
    add = lambda model, seen: [hook(model.get_submodule(place), seen) for place in PLACES.values()]  # noqa: E731
    handles = []
    if first:
        handles = add(model, ours)  # a frozen copy has copies of these hooks, which append to the same list
    fused = make.pair((model, plain))[0]
    if not first:
        agree(fused, plain, x)
        handles = add(fused, ours)
    handles_of_plain = add(plain, theirs)
    agree(fused, plain, x)
    seen_alike(ours, theirs)
    if first and make.frozen:
        return
    for handle in handles + handles_of_plain:
        handle.remove()
    count = len(ours)
    agree(fused, plain, x)
    assert len(ours) == count
    with torch.no_grad():
        assert epilogues(fused, x) == 2
    assert layers(fused)


@pytest.mark.parametrize("place", BACKWARD_PLACES)
@pytest.mark.parametrize("hook", BACKWARD, ids=lambda hook: hook.__name__)
@catches(ignores_hooks, variants=SHARED)
def test_backward_hooks(make, hook, place):
    model, plain = equal_models(Pair, training=True)
    fused = make(model)
    agree(fused, plain, image())
    ours, theirs = [], []
    handles = [hook(m.get_submodule(place), seen) for m, seen in ((fused, ours), (plain, theirs))]
    for _ in range(2):
        x = image()
        expected = outcome(plain, x)
        assert_same(outcome(fused, x), expected)
    seen_alike(ours, theirs)
    for handle in handles:
        handle.remove()
    agree(fused, plain, image())
    assert len(ours) == len(theirs) and layers(fused)


@catches(ignores_hooks)
def test_hooks_of_a_frozen_copys_input(make):
    """A full backward hook where only the input needs gradients."""
    fused, plain = make.pair(equal_models(Pair))
    ours, theirs = [], []
    backward_hook(fused.bn1, ours), backward_hook(plain.bn1, theirs)
    plain.requires_grad_(False), fused.requires_grad_(False)
    assert_alike(fused, plain, image())
    seen_alike(ours, theirs)


@catches(ignores_hooks)
def test_a_hook_that_raises(make):
    """Its error comes out as it is, always-called hooks run, and the copy computes as before once it is gone."""
    fused, plain = make.pair(equal_models(Pair))
    agree(fused, plain, image())

    def refuse(module, args, y):
        raise KeyError("the hook's own")

    seen = []
    handles = [always_called(fused, seen), fused.bn1.register_forward_hook(refuse)]
    with pytest.raises(KeyError, match="the hook's own"):
        fused(image())
    for handle in handles:
        handle.remove()
    agree(fused, plain, image())


@catches(ignores_hooks)
def test_global_hooks_see_every_module(make):
    fused, plain = make.pair(equal_models(Pair))
    agree(fused, plain, image())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, y: seen.append(type(m).__name__))
    try:
        with torch.no_grad():
            plain(image())
            expected, seen[:] = list(seen), []
            fused(image())
    finally:
        handle.remove()
    children = [name for name in expected if "Pair" not in name]
    assert [name for name in seen if "Pair" not in name] == children and len(children) == 6
    count = len(seen)
    agree(fused, plain, image())
    assert len(seen) == count
