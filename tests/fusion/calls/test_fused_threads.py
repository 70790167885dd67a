"""Eight threads that call and train fused models of the layers that Winograd's convolutions run, of many sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from thread_cases import NHWC, Net, Tensors, net, pictures
from threads import together

import atrous
from atrous.fusion import is_frozen
from atrous.testing import assert_tensor

THREADS = 8


def evaluate(model, xs):
    with torch.no_grad():  # gradient mode is a thread's own
        return [model(x) for x in xs]


def case(gate, dtype, **options):
    name = "-".join([str(dtype).removeprefix("torch."), *options])
    return pytest.param(dtype, options, id=name, marks=[pytest.mark.gate] * gate)


@pytest.mark.parametrize("dtype, options", [
    case(False, torch.float32), case(True, torch.float32, freeze=True, dynamic=True),
    case(True, torch.float32, dynamic=True), case(True, torch.float32, freeze=True), case(True, torch.bfloat16),
    case(True, torch.bfloat16, freeze=True, dynamic=True),
])  # fmt: skip
def test_eight_threads_call_one_model_first_calls_included(dtype, options):
    """Each begins with a size of its own. With one graph for all sizes a call has the bits that it has alone; else the
    graph of a size, and with it a Winograd tile, depends on the sizes that were called before."""
    draw = Tensors(dtype)
    model, xs = net(draw), pictures(draw)
    fused, truth = atrous.fuse(model, **options), evaluate(copy.deepcopy(model).double(), [x.double() for x in xs])
    plain = evaluate(model, xs)
    orders = [[*range(thread, len(xs)), *range(thread)] for thread in range(THREADS)]
    results = together([lambda order=order: evaluate(fused, [xs[i] for i in order]) for order in orders])
    alone = evaluate(fused, xs)
    for order, ys in zip(orders, results):
        for i, y in zip(order, ys):
            assert_tensor(y, plain[i], truth[i], ratio=2.0)
            assert torch.equal(y, alone[i]) or "dynamic" not in options
    assert not fused.fusion_report.plain_calls and is_frozen(fused) == ("freeze" in options)


def steps(model, xs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for x in xs:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return list(model.state_dict().values())


@pytest.mark.gate
def test_threads_train_fused_models_of_their_own_beside_threads_that_evaluate_one():
    draw = Tensors(torch.float32)
    torch.manual_seed(0)
    plain = [Net().to(torch.float64, memory_format=NHWC).train() for _ in range(3)]
    trained = [atrous.fuse(copy.deepcopy(model)) for model in plain]
    xs = [[draw(2, 4, 20 + 4 * thread, 24, layout=NHWC).double() for _ in range(3)] for thread in range(3)]
    shared, inputs = net(draw), pictures(draw)[: THREADS - 3]
    fused = atrous.fuse(shared, freeze=True)
    expected = evaluate(copy.deepcopy(shared).double(), [x.double() for x in inputs])
    training = [lambda m=model, x=x: steps(m, x) for model, x in zip(trained, xs)]
    results = together([*training, *(lambda x=x: evaluate(fused, [x] * 3) for x in inputs)])
    for model, x, state in zip(plain, xs, results):
        for actual, value in zip(state, steps(model, x)):
            torch.testing.assert_close(actual, value, rtol=1e-9, atol=1e-9)
    for x, truth, calls in zip(inputs, expected, results[len(plain) :]):
        for y in calls:
            assert_tensor(y, shared(x), truth, ratio=2.0)
