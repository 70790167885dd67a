"""Rules of a training step: no unneeded gradients, no mutation, exact counts, gradients of gradients."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from oracle import make_plain, ours_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import LOOSE, assert_same, fused_and_plain, images, training_step


@pytest.mark.parametrize("linear", [True, False])
def test_a_gradient_penalty(backend, linear):
    """Its gradients (arXiv:1704.00028) are eager's; tests/training/test_second_derivatives.py has them in fp64."""
    plain = make_plain(nn.PReLU(6), bias=False).train()
    gradients = []
    for module in (plain, ours_of(plain, backend)):
        x = torch.linspace(-1, 1, 576).reshape(2, 4, 9, 8).requires_grad_()
        y = module(x) * torch.linspace(-1, 1, 864).reshape(2, 6, 9, 8)
        score = y.sum() if linear else y.square().sum()
        (dx,) = torch.autograd.grad(score, x, create_graph=True)
        (score + dx.square().sum()).backward()
        gradients.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


class OutputMasks(TorchDispatchMode):
    """Records the output_mask of each convolution_backward: which of (input, weight, bias) it computes."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.masks.append(tuple(arguments[10]))
        return function(*arguments, **(named or {}))


NEEDED = {"all": (True, True), "input": (True, False), "weight": (False, True), "vectors": (False, False)}


@pytest.mark.parametrize("needs_input, needs_weight", NEEDED.values(), ids=NEEDED)
def test_only_the_needed_gradients_are_computed(needs_input, needs_weight):
    layer = ours_of(make_plain(nn.PReLU(6), bias=False).train(), "auto")
    layer.conv.weight.requires_grad_(needs_weight)
    x = torch.randn(2, 4, 9, 8, requires_grad=needs_input)
    loss = layer(x).square().sum()
    with OutputMasks() as recorded:
        loss.backward()
    assert recorded.masks in ([], [(needs_input, needs_weight, False)]), recorded.masks
    assert (x.grad is not None, layer.conv.weight.grad is not None) == (needs_input, needs_weight)
    assert layer.bn.weight.grad is not None and layer.act.weight.grad is not None


def test_nothing_is_mutated_and_bits_repeat(backend):
    plain, runs = make_plain(nn.PReLU(6)).train(), []
    x, r = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(2, 6, 9, 8, requires_grad=True)
    for _ in range(2):
        ours = ours_of(plain, backend)
        leaves = [x, r, *ours.parameters()]
        before, grad = [t.detach().clone() for t in leaves], torch.ones(2, 6, 9, 8)
        y = ours(x, r)
        result = y.detach().clone()
        runs.append([y, *torch.autograd.grad(y, leaves, grad), ours.bn.running_var])
        assert torch.equal(y, result) and torch.equal(grad, torch.ones_like(grad))
        assert all(torch.equal(t, value) for t, value in zip(leaves, before))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_two_threads_two_models():
    pairs = [fused_and_plain("prelu"), fused_and_plain("relu")]
    x = images()
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda pair: [training_step(pair[0], x) for _ in range(5)][-1], pairs))
    for (_, plain), result in zip(pairs, results):
        expected = [training_step(plain, x) for _ in range(5)][-1]
        assert_same(result, expected, **LOOSE)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_statistics_without_gradients(mode):
    fused, plain = fused_and_plain()
    x = images()
    with mode():
        y, expected = fused(x), plain(x)
    torch.testing.assert_close(y, expected, **LOOSE)
    assert not y.requires_grad and fused[0].bn1.num_batches_tracked == 1
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), **LOOSE)


def test_an_empty_batch():
    """As in eager: an empty output, unchanged statistics, a counted batch, gradients of 0."""
    plain = make_plain(nn.PReLU(6)).train()
    ours, truth = ours_of(plain, "auto"), copy.deepcopy(plain)
    x = torch.randn(0, 4, 9, 8)
    actual, expected = training_step(ours, x), training_step(plain, x)
    assert_same(actual, expected)
    assert actual["y"].shape == (0, 6, 9, 8) and actual["bn.num_batches_tracked"] == 1
    assert torch.equal(actual["bn.running_var"], truth.bn.running_var) and not actual["conv.weight"].any()


def test_frozen_norms_while_the_rest_trains():
    fused, plain = fused_and_plain()
    for model in (fused, plain):
        model[0].bn1.eval(), model[1].bn2.eval().requires_grad_(False)
    x, before = images(), plain[0].bn1.running_mean.clone()
    actual, eager = ({k: v for k, v in training_step(m, x).items() if v is not None} for m in (fused, plain))
    assert_same(actual, eager, **LOOSE)
    assert torch.equal(actual["0.bn1.running_mean"], before) and "1.bn2.weight" not in actual


def test_backward_twice_with_retain_graph():
    """The second backward gives the gradients of the first again, twice as much in total."""
    fused, plain = fused_and_plain()
    x = images()
    for model in (fused, plain):
        loss = model(x).square().sum()
        loss.backward(retain_graph=True)
        first = [p.grad.clone() for p in model.parameters()]
        loss.backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], [2 * grad for grad in first])
