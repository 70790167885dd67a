"""ConvBNAct2d in the framework: modes, mutation, determinism, staleness, copies, hooks and threads."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
import torch
from oracle import ACTS, make_plain, module_and_input, ours_of
from torch import nn

from atrous.testing import assert_tensor


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("act", ACTS)
def test_without_gradients(backend, mode, act):
    """In these modes the output requires no gradient, even if parameters do. The input may be an inference tensor."""
    ours, plain, x = module_and_input(backend, act)
    residual = torch.randn(2, 6, 9, 8)
    with mode():
        y = ours(x.clone(), residual)
        assert_tensor(y, plain(x, residual), oracle.wide(plain)(x.double(), residual.double()))
    assert not y.requires_grad and y.is_inference() == (mode is torch.inference_mode)


def test_nothing_is_mutated_and_bits_repeat(backend):
    for act in ACTS:
        ours, _, x = module_and_input(backend, act)
        residual = torch.randn(2, 6, 9, 8)
        tensors = [x, residual, *ours.state_dict().values()]
        before = [tensor.clone() for tensor in tensors]
        with torch.no_grad():
            results = [ours(x, residual) for _ in range(3)]
        assert all(torch.equal(tensor, expected) for tensor, expected in zip(tensors, before))
        assert all(torch.equal(result, results[0]) for result in results), act


UPDATES = {
    "in place": lambda m: [v.mul_(1.5) for v in (m.conv.weight, m.conv.bias, m.bn.weight, m.bn.running_mean)],
    "behind autograd's back": lambda m: [v.data.mul_(0.5) for v in (m.conv.weight, m.bn.running_var, m.act.weight)],
    "new parameters": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones_like(m.conv.weight))),
    "swapped data": lambda m: setattr(m.conv.weight, "data", torch.full_like(m.conv.weight, 0.1)),
    "a swapped child": lambda m: setattr(m, "bn", nn.BatchNorm2d(6).eval()),
    "no BatchNorm any more": lambda m: setattr(m, "bn", None),
    "another activation": lambda m: setattr(m, "act", nn.ReLU()),
    "a state_dict": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "another stride": lambda m: setattr(m.conv, "stride", (2, 1)),
    "double": lambda m: m.double(),
    "bfloat16": lambda m: m.bfloat16(),
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
@torch.no_grad()
def test_nothing_is_stale(backend, update):
    ours, plain, x = module_and_input(backend)
    before = ours(x)
    update(ours), update(plain)
    x = x.to(ours.conv.weight.dtype)
    assert_tensor(ours(x), plain(x), oracle.wide(plain)(x.double()))
    assert before.shape != ours(x).shape or not torch.equal(before, ours(x))


def test_eval_train_eval(backend):
    ours, plain, x = module_and_input(backend)
    for module in (ours, plain):
        module(x)
        module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(x).square().mean().backward()
        optimizer.step()
        module.eval()
    torch.testing.assert_close(ours(x), plain(x))
    assert torch.equal(ours.bn.num_batches_tracked, torch.tensor(1))


@torch.no_grad()
def test_copies(backend):
    """deepcopy, pickle, torch.save and state_dict, also after a call that may have cached something."""
    ours, plain, x = module_and_input(backend)
    expected = ours(x)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    fresh = ours_of(make_plain(nn.PReLU(6)), backend).eval()
    fresh(x)
    fresh.load_state_dict(plain.state_dict())
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False), fresh]
    for module in copies:
        assert torch.equal(module(x), expected) and module.state_dict().keys() == ours.state_dict().keys()
        module.conv.weight.zero_()
        module.bn.running_mean.zero_()
        assert torch.equal(ours(x), expected) and not torch.equal(module(x), expected), "a copy shares memory"


@torch.no_grad()
def test_functional_call_swaps_parameters(backend):
    ours, plain, x = module_and_input(backend)
    swapped = {name: torch.rand_like(p) for name, p in ours.named_parameters()}
    expected = torch.func.functional_call(plain, swapped, (x,))
    torch.testing.assert_close(torch.func.functional_call(ours, swapped, (x,)), expected, rtol=1e-4, atol=1e-4)


def test_hooks_of_the_children_fire_or_are_refused(backend):
    ours, plain, x = module_and_input(backend, "relu")
    for module in (ours, plain):
        module.bn.register_forward_hook(lambda module, inputs, output: output + 1)
    with torch.no_grad():
        oracle.agree_or_refuse(lambda: ours(x), lambda: plain(x), "hook|hooks")


def test_two_threads_two_models(backend):
    models = [module_and_input(backend, act) for act in ("prelu", "relu")]

    def run(ours, plain, x):
        with torch.no_grad():
            return [ours(x) for _ in range(50)], plain(x)

    with ThreadPoolExecutor(2) as pool:
        for results, expected in pool.map(lambda model: run(*model), models):
            assert all(torch.equal(result, results[0]) for result in results)
            torch.testing.assert_close(results[0], expected, rtol=1e-4, atol=1e-5)
