"""Compares reference.py with torch.nn and autograd, and tests that it imports only torch."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atrous import reference
from atrous.core.spec import Epilogue, Spec


def test_it_is_conv_bn_add_activation():
    torch.manual_seed(0)
    conv, bn, act = nn.Conv2d(5, 7, 3, 2, 1).double(), nn.BatchNorm2d(7).double().eval(), nn.PReLU(7).double()
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.running_mean)
    x, r = torch.randn(2, 5, 9, 9).double(), torch.randn(2, 7, 5, 5).double()
    vectors = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    e = Epilogue(*vectors, act.weight, r, "tensor", bn.eps)
    convolution = x, conv.weight, conv.bias, Spec((2, 2), (1, 1))
    assert torch.equal(reference.conv_epilogue(*convolution, e), act(bn(conv(x)) + r))
    after = e._replace(residual_after_act=True)
    assert torch.equal(reference.conv_epilogue(*convolution, after), act(bn(conv(x))) + r)


def test_uniform_is_philox_4x32_10():
    """Known answers of Random123 (kat_vectors, philox4x32 10): first word, upper 24 bits."""
    zeros = reference.uniform(torch.tensor([0, 0]), (1,))
    assert zeros.item() == (0x6627E8D5 >> 8) * 2.0**-24
    pi = 0x243F6A88 | 0x85A308D3 << 32  # counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0
    signed = [v - 2**64 if v >= 2**63 else v for v in (0xA4093822 | 0x299F31D0 << 32, 0x13198A2E | 0x03707344 << 32)]
    assert philox_at(pi, torch.tensor(signed)) == (0xD16CFE09 >> 8) * 2.0**-24


def philox_at(index: int, seed: torch.Tensor) -> float:
    """Returns reference.uniform for one counter value."""
    original = torch.arange
    value = index - 2**64 if index >= 2**63 else index
    try:
        torch.arange = lambda *_, **__: torch.tensor([value])
        return reference.uniform(seed, (1,)).item()
    finally:
        torch.arange = original


def test_uniform_is_uniform_and_depends_on_seed_and_offset():
    draws = [reference.uniform(torch.tensor(pair), (100_000,)) for pair in ((1, 0), (2, 0), (1, 1))]
    for drawn in draws:
        assert 0 <= drawn.min() and drawn.max() < 1
        assert abs(drawn.mean() - 0.5) < 0.005 and abs(drawn.var() - 1 / 12) < 0.002
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_it_needs_nothing_of_ours():
    """It runs from its file alone, with imports of triton and atrous blocked."""
    block = "import sys; sys.modules['triton'] = sys.modules['atrous'] = None;"
    load = f"import runpy, torch, types; r = runpy.run_path({reference.__file__!r});"
    number = "types.SimpleNamespace(slope_kind='number', slope_value=0.5, slope=None)"
    check = f"print(r['activate'](torch.tensor([-1.0, 2.0]), {number}).tolist())"
    done = subprocess.run([sys.executable, "-c", block + load + check], capture_output=True, text=True)
    assert done.stdout.strip() == "[-0.5, 2.0]", done.stderr


def a_call(kind, after, dropout, bn=True):
    """Returns z and an epilogue in fp64 whose tensors can require gradients."""
    z, residual = (torch.randn(3, 4, 5, 2, dtype=torch.float64) for _ in range(2))
    gamma, beta, slope = (torch.randn(4, dtype=torch.float64) for _ in range(3))
    seed = torch.tensor([-(2**40) - 7, 2**35 + 3])
    vectors = (gamma, beta) if bn else (None, None)
    return z, Epilogue(None, None, *vectors, slope, residual, kind, 1e-3, 0.25, 0.5, after, seed, dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("batch", [True, False, None], ids=["batch", "running", "none"])
@pytest.mark.parametrize("kind", ["relu", "number", "tensor", "random"])
def test_the_two_backward_passes_are_what_autograd_gives(kind, batch, after, dropout):
    z, e = a_call(kind, after, dropout, bn=batch is not None)
    needed = [t.requires_grad_() for t in (z, e.residual, e.slope, e.gamma, e.beta) if t is not None]
    if batch is not None:
        random = torch.randn(4).double(), torch.rand(4).double() + 0.5
        mean, var = reference.statistics(z.detach()) if batch else random
        e = e._replace(mean=mean, var=var)
    y = reference.epilogue(z, e)
    if batch:  # torch's batch_norm, whose statistics depend on z
        u = F.batch_norm(z, None, None, e.gamma, e.beta, True, eps=e.eps)
        plain = reference.finish(u, e) * reference.keep(y, dropout, e.seed)
        torch.testing.assert_close(y, plain)
        y = plain
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, needed, dy, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        sums = reference.epilogue_reduce(dy, z, e)
        means = sums[:2] / (z.numel() / 4) if batch else None
        dz, du = reference.epilogue_backward(dy, z, means, True, True, e)
        gradients = [dz, dy * reference.keep(dy, dropout, e.seed) if after else du, sums[2], sums[1], sums[0]]
    for a, b in zip(gradients, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert e.residual.shape == z.shape and e.slope.shape == (4,)


def test_dropout_zeroes_and_scales():
    y, seed = torch.randn(2, 8, 32, 32), torch.tensor([5, 9])
    factors = reference.keep(y, 0.25, seed)
    torch.testing.assert_close(factors.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert factors.mean().item() == pytest.approx(1.0, abs=0.02)
    assert not reference.keep(y, 1.0, seed).any()
    # independent of the draws of slopes
    other = reference.uniform(seed, tuple(y.shape))
    assert abs(torch.corrcoef(torch.stack([other.flatten(), factors.flatten()]))[0, 1]) < 0.05
