"""The oracle against torch.nn itself, and that it stands alone."""

import subprocess
import sys

import torch
from torch import nn

from atrous import reference


def test_it_is_conv_bn_add_activation():
    torch.manual_seed(0)
    conv, bn, act = nn.Conv2d(5, 7, 3, 2, 1).double(), nn.BatchNorm2d(7).double().eval(), nn.PReLU(7).double()
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.running_mean)
    x, r = torch.randn(2, 5, 9, 9).double(), torch.randn(2, 7, 5, 5).double()
    vectors = (bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)
    tail = ("tensor", 1.0, 1.0, act.weight, None, r)
    got = reference.conv_epilogue(x, conv.weight, conv.bias, (2, 2), (1, 1), (1, 1), 1, *vectors, *tail, False)
    assert torch.equal(got, act(bn(conv(x)) + r))
    got = reference.conv_epilogue(x, conv.weight, conv.bias, (2, 2), (1, 1), (1, 1), 1, *vectors, *tail, True)
    assert torch.equal(got, act(bn(conv(x))) + r)


def test_uniform_is_philox_4x32_10():
    """The known answers of Random123 (kat_vectors, philox4x32 10): first word, upper 24 bits."""
    zeros = reference.uniform(torch.tensor([0, 0]), (1,))
    assert zeros.item() == (0x6627E8D5 >> 8) * 2.0**-24
    pi = 0x243F6A88 | 0x85A308D3 << 32  # counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0
    signed = [v - 2**64 if v >= 2**63 else v for v in (0xA4093822 | 0x299F31D0 << 32, 0x13198A2E | 0x03707344 << 32)]
    assert philox_at(pi, torch.tensor(signed)) == (0xD16CFE09 >> 8) * 2.0**-24


def philox_at(index: int, seed: torch.Tensor) -> float:
    """reference.uniform with one chosen counter."""
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
    """It runs from its file alone, where neither triton nor atrous can be imported."""
    block = "import sys; sys.modules['triton'] = sys.modules['atrous'] = None;"
    load = f"import runpy, torch; r = runpy.run_path({reference.__file__!r});"
    check = "print(r['activate'](torch.tensor([-1.0, 2.0]), 'number', 0.5).tolist())"
    done = subprocess.run([sys.executable, "-c", block + load + check], capture_output=True, text=True)
    assert done.stdout.strip() == "[-0.5, 2.0]", done.stderr
