"""What a training step must not do: compute too much, change its inputs, miscount, differentiate twice in silence."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from oracle import make_plain, ours_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import LOOSE, everything, images, same, twins


@pytest.mark.parametrize("linear", [True, False])
def test_a_second_derivative_is_refused(row, linear):
    """A gradient penalty (arXiv:1704.00028): eager's gradients, or an error that says why not. Never a part of them."""
    plain = make_plain(nn.PReLU(6)).train()
    found = []
    for module in (plain, ours_of(plain, row)):
        x = torch.linspace(-1, 1, 576).reshape(2, 4, 9, 8).requires_grad_()
        y = module(x) * torch.linspace(-1, 1, 864).reshape(2, 6, 9, 8)
        score = y.sum() if linear else y.square().sum()
        try:
            (dx,) = torch.autograd.grad(score, x, create_graph=True)
            (score + dx.square().sum()).backward()
            found.append([p.grad for p in module.parameters()])
        except RuntimeError as error:
            assert module is not plain and "differentiate twice" in str(error), error
            return
    torch.testing.assert_close(*found, **LOOSE)


class Masks(TorchDispatchMode):
    """The output_mask of each convolution_backward: which of (input, weight, bias) it computes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.found.append(tuple(arguments[10]))
        return function(*arguments, **(named or {}))


NEEDED = {"all": (True, True), "input": (True, False), "weight": (False, True), "vectors": (False, False)}


@pytest.mark.parametrize("needs_input, needs_weight", NEEDED.values(), ids=NEEDED)
def test_only_the_needed_gradients_are_computed(needs_input, needs_weight):
    site = ours_of(make_plain(nn.PReLU(6), bias=False).train(), "auto")
    site.conv.weight.requires_grad_(needs_weight)
    x = torch.randn(2, 4, 9, 8, requires_grad=needs_input)
    loss = site(x).square().sum()
    with Masks() as masks:
        loss.backward()
    assert masks.found in ([], [(needs_input, needs_weight, False)]), masks.found
    assert (x.grad is not None, site.conv.weight.grad is not None) == (needs_input, needs_weight)
    assert site.bn.weight.grad is not None and site.act.weight.grad is not None


def test_nothing_is_mutated_and_bits_repeat(row):
    plain, found = make_plain(nn.PReLU(6)).train(), []
    x, r = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(2, 6, 9, 8, requires_grad=True)
    for _ in range(2):
        ours = ours_of(plain, row)
        held = [x, r, *ours.parameters()]
        before, grad = [t.detach().clone() for t in held], torch.ones(2, 6, 9, 8)
        y = ours(x, r)
        result = y.detach().clone()
        found.append([y, *torch.autograd.grad(y, held, grad), ours.bn.running_var])
        assert torch.equal(y, result) and torch.equal(grad, torch.ones_like(grad))
        assert all(torch.equal(t, value) for t, value in zip(held, before))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_two_threads_two_models():
    pairs = [twins("prelu"), twins("relu")]
    x = images()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda pair: [everything(pair[0], x) for _ in range(5)][-1], pairs))
    for (_, plain), result in zip(pairs, found):
        expected = [everything(plain, x) for _ in range(5)][-1]
        same(result, expected, **LOOSE)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_statistics_without_gradients(mode):
    fused, plain = twins()
    x = images()
    with mode():
        y, expected = fused(x), plain(x)
    torch.testing.assert_close(y, expected, **LOOSE)
    assert not y.requires_grad and fused[0].bn1.num_batches_tracked == 1
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), **LOOSE)


def test_an_empty_batch():
    """As eager: an empty result, statistics as they were, a counted batch, gradients of 0."""
    plain = make_plain(nn.PReLU(6)).train()
    ours, truth = ours_of(plain, "auto"), copy.deepcopy(plain)
    x = torch.randn(0, 4, 9, 8)
    found, expected = everything(ours, x), everything(plain, x)
    same(found, expected)
    assert found["y"].shape == (0, 6, 9, 8) and found["bn.num_batches_tracked"] == 1
    assert torch.equal(found["bn.running_var"], truth.bn.running_var) and not found["conv.weight"].any()


def test_frozen_norms_while_the_rest_trains():
    fused, plain = twins()
    for model in (fused, plain):
        model[0].bn1.eval(), model[1].bn2.eval().requires_grad_(False)
    x, before = images(), plain[0].bn1.running_mean.clone()
    found, eager = ({k: v for k, v in everything(m, x).items() if v is not None} for m in (fused, plain))
    same(found, eager, **LOOSE)
    assert torch.equal(found["0.bn1.running_mean"], before) and "1.bn2.weight" not in found


def test_the_graph_can_be_walked_again():
    """retain_graph: the second walk gives the first's gradients, so twice as much in all."""
    fused, plain = twins()
    x = images()
    for model in (fused, plain):
        loss = model(x).square().sum()
        loss.backward(retain_graph=True)
        first = [p.grad.clone() for p in model.parameters()]
        loss.backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], [2 * grad for grad in first])
