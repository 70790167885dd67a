"""Eight threads on one object, first calls included, in shapes of their own: the bits of calls one after the other."""

from __future__ import annotations

import copy
import itertools
import time
import types

import pytest
import torch
from thread_cases import DTYPES, KINDS, LAYERS, NHWC, Tensors, calls, is_winograd
from threads import together
from torch import nn

from atrous.backends.prepack import PrepackedWeights
from atrous.nn import AddAct, BNAct2d, ConvBNAct2d

pytestmark = pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="one GPU's calls have one order")

THREADS = 8


def same(results, expected):
    assert len(results) == len(expected)
    for actual, value in zip(results, expected):
        assert actual.dtype == value.dtype and torch.equal(actual, value)


def test_cases_are_of_both_kinds():
    for dtype, call in itertools.product(DTYPES, ("frozen", "changing", "gradient")):
        kinds = [is_winograd(layer, dtype, call) for layer in LAYERS]
        assert any(kinds) and not all(kinds), (dtype, call, kinds)
    assert all(is_winograd(layer, torch.float32, "frozen") for layer in LAYERS[:3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_eight_threads(kind, dtype):
    """Each begins at another of the calls. The primitives are many: each call is made by two threads."""
    listed, alone = calls(kind, dtype), calls(kind, dtype)
    each = 4 if kind == "primitives" else 1

    def run(thread):
        chosen = [i for i in range(len(listed)) if (i + thread) % each == 0]
        first = thread * len(chosen) // THREADS
        return {i: listed[i]() for i in (*chosen[first:], *chosen[:first])}

    results = together([lambda thread=thread: run(thread) for thread in range(THREADS)])
    assert set().union(*results) == set(range(len(listed)))
    for i, call in enumerate(alone):
        expected = call()
        for result in results:
            if i in result:
                same(result[i], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prepacked_weights_that_come_and_go(dtype):
    """More sizes than there is room for, all the time: each thread packs and discards what the others read."""
    listed = calls("frozen_library", dtype)
    expected = [call() for call in listed]
    assert len(listed) > PrepackedWeights().capacity

    def run(thread):
        for i in range(10 * len(listed)):
            same(listed[(i * (thread + 1)) % len(listed)](), expected[(i * (thread + 1)) % len(listed)])

    together([lambda thread=thread: run(thread) for thread in range(THREADS)])


class SlowKey(tuple):
    """A key beside whose look-up another thread runs."""

    def __hash__(self):
        time.sleep(1e-5)
        return super().__hash__()


def test_a_prepacked_weight_that_another_thread_discards():
    weight, xs = torch.randn(3), [torch.empty(size) for size in range(8)]
    backend = types.SimpleNamespace(
        name="a backend", pack_key=lambda x, *others: SlowKey(x.shape), pack=lambda x, weight, spec: weight + len(x),
        packed_conv_epilogue=lambda x, packed, *others: packed,
    )  # fmt: skip
    run = PrepackedWeights(capacity=4).bind(backend)

    def call(thread):
        for i in range(200):
            x = xs[i * (thread + 1) % 8]
            assert torch.equal(run(x, weight, None, None, None), weight + len(x))

    together([lambda thread=thread: call(thread) for thread in range(THREADS)])


def network(dtype):
    """A residual network of modules, one of whose layers is Winograd's."""
    draw = Tensors(dtype)
    layers = [ConvBNAct2d(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))]
    layers += [BNAct2d(nn.BatchNorm2d(64), nn.LeakyReLU(0.1)), AddAct(nn.ReLU())]
    model = nn.ModuleList(layers).to(dtype, memory_format=NHWC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(draw(*parameter.shape) * (576**-0.5 if parameter.dim() == 4 else 1))
    return model


def forward(model, x):
    conv, norm, add = model
    return add(norm(conv(x)), x)


def steps(model, xs):
    """Three steps of SGD; the loss of each, and the parameters and buffers behind them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for x in xs:
        optimizer.zero_grad()
        loss = forward(model, x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(tensor.detach() for tensor in model.state_dict().values())]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_train_models_of_their_own_beside_threads_that_evaluate_one(dtype):
    draw = Tensors(dtype)
    trained = [network(dtype).train() for _ in range(THREADS // 2)]
    alone, shared = copy.deepcopy(trained), network(dtype).eval()
    xs = [
        [draw(2, 64, 20 + 4 * thread, 24 + step, layout=NHWC) for step in range(3)] for thread in range(THREADS)
    ]  # fmt: skip

    def evaluate(model, inputs):
        with torch.no_grad():
            return [forward(model, x) for x in inputs]

    training = [lambda m=model, x=x: steps(m, x) for model, x in zip(trained, xs)]
    evaluating = [lambda x=x: evaluate(shared, x) for x in xs[len(trained) :]]
    results = together([*training, *evaluating])
    for model, x, result in zip(alone, xs, results):
        same(result, steps(model, x))
    for x, result in zip(xs[len(trained) :], results[len(trained) :]):
        same(result, evaluate(copy.deepcopy(shared), x))
