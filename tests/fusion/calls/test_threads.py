"""Several threads, their first calls included, and a process that forks after the package was imported."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from faults import loses_statistics, replaces, scales
from outcomes import agree, equal_models
from pairs import BOTH, Pair, image
from threads import together
from torch import nn
from variants import SHARED, catches, layers


@catches(replaces)
def test_first_calls_of_six_threads(make):
    fused, plain = make.pair(equal_models(Pair))
    xs = [image() for _ in range(6)]
    with torch.no_grad():
        expected = [plain(x) for x in xs]

    def call(x):
        with torch.no_grad():  # gradient mode is a thread's own
            return [fused(x) for _ in range(3)]

    for ours, theirs in zip(together([lambda x=x: call(x) for x in xs]), expected):
        for y in ours:
            torch.testing.assert_close(y, theirs, rtol=1e-9, atol=1e-9)
    agree(fused, plain, image())
    assert layers(fused) == BOTH


@catches(replaces, gates=("frozen",))
def test_threads_of_several_models_modes_and_sizes(make):
    """Each thread has a gradient mode of its own; two threads fuse for themselves."""
    pairs = [make.pair(equal_models(Pair)) for _ in range(2)]
    cases = [(i % 2, bool(i // 2 % 2), image(2 + i)) for i in range(6)]

    def call(number, grad, x):
        with torch.set_grad_enabled(grad):
            y = pairs[number][0](x)
        return y.requires_grad, y.detach()

    def fuse_and_call():
        fused, plain = make.pair(equal_models(Pair))
        with torch.no_grad():
            return fused(cases[0][2]), plain(cases[0][2])

    calls = [lambda case=case: call(*case) for case in cases]
    *ours, first, second = together([*calls, fuse_and_call, fuse_and_call])
    for (number, grad, x), (required, y) in zip(cases, ours):
        with torch.set_grad_enabled(grad):
            expected = pairs[number][1](x)
        assert required == expected.requires_grad
        torch.testing.assert_close(y, expected.detach(), rtol=1e-9, atol=1e-9)
    assert {first[0].shape, second[0].shape} == {first[1].shape}  # both draw from one generator: values may differ


@catches(loses_statistics, variants=SHARED)
def test_training_in_threads(make):
    """As DataParallel's replicas train: each thread a model of its own, forward and backward."""
    pairs = [make.pair(equal_models(Pair, training=True)) for _ in range(4)]
    xs = [image() for _ in pairs]

    def step(model, x):
        for _ in range(3):
            model.zero_grad()
            model(x).pow(2).sum().backward()
        return [p.grad for p in model.parameters()]

    together([lambda pair=pair, x=x: step(pair[0], x) for pair, x in zip(pairs, xs)])
    for (fused, plain), x in zip(pairs, xs):
        step(plain, x)
        for ours, theirs in zip(fused.parameters(), plain.parameters()):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
        for ours, theirs in zip(fused.buffers(), plain.buffers()):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def leaves_a_patch(model, *args, **options):
    """The call of every module stays replaced, as torch.fx leaves it where two threads traced at once."""
    original = nn.Module.__call__
    nn.Module.__call__ = lambda self, *a, **k: original(self, *a, **k)
    return model


@catches(leaves_a_patch)
def test_torch_is_as_it_was(make):
    """Threads that fuse at the same time leave no method of nn.Module replaced."""
    names = ("__call__", "__getattr__", "__setattr__", "forward")
    before = {name: getattr(nn.Module, name) for name in names}
    try:
        together([lambda: make(equal_models(Pair)[0])(image()) for _ in range(6)])
        assert [name for name in names if getattr(nn.Module, name) is not before[name]] == []
    finally:
        nn.Module.__call__ = before["__call__"]


def in_child(queue, make, fused, plain, x):
    torch.set_num_threads(1)
    try:
        fused = fused if fused is not None else make(plain)
        with torch.no_grad():
            torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(fused(x[:1]), plain(x[:1]), rtol=1e-9, atol=1e-9)
        queue.put("")
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.parametrize("fused_before", [False, True], ids=["in the child", "in the parent"])
@catches(scales)
def test_fork(make, fused_before):
    """A worker of a data loader: fused there, or fused and called before."""
    model, plain = equal_models(Pair)
    fused, x = None, image()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of OpenMP does not survive a fork
    try:
        if fused_before:
            fused = make.pair((model, plain))[0]
            agree(fused, plain, x)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=in_child, args=(queue, make, fused, plain, x))
        child.start()
        child.join(60)
        if child.is_alive():
            child.kill()
            raise AssertionError("the child hangs")
        assert child.exitcode == 0 and queue.get() == ""
    finally:
        torch.set_num_threads(threads)
