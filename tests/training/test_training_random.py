"""Random draws in training (RReLU slopes, dropout of add_act): reproducible, not saved, the same in the backward."""

from __future__ import annotations

import math

import pytest
import torch
from saved_bytes import saved
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

import atrous

SLOPES = {"relu": "relu", "number": 0.3, "identity": 1.0, "tensor": torch.tensor([0.1, 0.2, 0.3, 0.4]),
          "random": (0.1, 0.4)}  # fmt: skip
LAYERS = {  # dropout and slope of add_act
    "rrelu": (0.0, (0.1, 0.4)),
    "dropout": (0.3, 1.0),
    "both": (0.3, (0.1, 0.4)),
}


def pair(*size, layout=torch.contiguous_format, dtype=torch.float32):
    size = size or (2, 4, 9, 7)
    return tuple(torch.randn(size, dtype=dtype).contiguous(memory_format=layout).requires_grad_() for _ in range(2))


def factors(x, o, y):
    """The factor of each sum in the forward: its slope times its dropout scale."""
    return (y / (x + o)).detach()


@pytest.mark.parametrize("dropout, slope", LAYERS.values(), ids=LAYERS)
def test_the_seed_reproduces_and_calls_differ(backend, dropout, slope):
    def draw():
        return atrous.add_act(x, o, slope=slope, dropout=dropout, training=True, backend=backend)

    x, o = pair()
    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert torch.equal(draw(), first) and torch.equal(draw(), second) and not torch.equal(first, second)


@pytest.mark.parametrize("dropout", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("slope", SLOPES.values(), ids=SLOPES)
def test_the_backward_multiplies_with_the_forwards_factors(backend, slope, dropout):
    x, o = pair()
    y = atrous.add_act(x, o, slope=slope, dropout=dropout, training=True, backend=backend)
    dx, do = torch.autograd.grad(y, (x, o), torch.ones_like(y))
    torch.testing.assert_close(dx, factors(x, o, y), rtol=1e-4, atol=1e-6)
    assert torch.equal(dx, do)
    if not isinstance(slope, (str, tuple)):  # a factor is the slope, or 1, times the dropout scale
        plain = torch.nn.functional.prelu(x + o, torch.as_tensor(slope).reshape(-1))
        scale = 1 / (1 - dropout) if dropout < 1 else 0.0
        torch.testing.assert_close(y, plain * torch.where(dx == 0, 0.0, scale))


def test_the_backward_of_a_convolution_with_random_slopes(backend):
    layer = atrous.nn.ConvBNAct2d(torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.RReLU(), backend=backend)
    x, r = pair()
    seen = []
    r.register_hook(seen.append)
    torch.manual_seed(5)
    y = layer(x, r)
    layer.act = torch.nn.Identity()
    u = layer(x, r)
    grad = torch.rand_like(y)
    y.backward(grad)
    torch.testing.assert_close(seen[0], grad * (y / u).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dropout, slope", LAYERS.values(), ids=LAYERS)
def test_draws_need_no_saved_memory(dropout, slope):
    """The call saves x and o, from which the sum is recomputed, as without draws; and no mask."""
    x, o = pair(2, 8, 32, 32)
    saved_bytes = saved(lambda: atrous.add_act(x, o, slope=slope, dropout=dropout, training=True))[1]
    assert saved_bytes <= 2 * x.nbytes + 64, "a mask of one byte an element would be a quarter of x"


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_fraction_of_zeros(backend, p):
    n = 40 * 2500
    x = torch.ones(4, 10, 50, 50)
    y = atrous.add_act(x, torch.zeros_like(x), dropout=p, training=True, backend=backend)
    assert abs((y == 0).double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / n)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)))
    lag = ((y[..., 1:] == 0).double() - p) * ((y[..., :-1] == 0).double() - p)
    assert abs(lag.mean().item()) < 5 * p * (1 - p) / math.sqrt(n * 0.98), "neighbours are independent"


def test_the_mean_and_bounds_of_random_slopes(backend):
    lower, upper, x = 0.125, 1 / 3, -torch.ones(4, 10, 50, 50)
    slopes = -atrous.add_act(x, torch.zeros_like(x), slope=(lower, upper), training=True, backend=backend).double()
    assert slopes.min() >= lower - 1e-6 and slopes.max() <= upper + 1e-6
    deviation = (upper - lower) / math.sqrt(12)
    assert abs(slopes.mean().item() - (lower + upper) / 2) < 5 * deviation / math.sqrt(slopes.numel())
    assert abs(slopes.std().item() / deviation - 1) < 0.02


def test_slopes_and_dropout_are_independent(backend):
    """Slopes and dropout use different words of one seed: the slopes that are not dropped have the mean of all."""
    lower, upper, x = 0.1, 0.9, -torch.ones(4, 10, 50, 50)
    y = -atrous.add_act(
        x, torch.zeros_like(x), slope=(lower, upper), dropout=0.5, training=True, backend=backend
    ).double()
    slopes = y[y != 0] / 2
    assert abs(slopes.mean().item() - 0.5) < 5 * (upper - lower) / math.sqrt(12 * slopes.numel())


def test_eval_draws_nothing(backend):
    x, o = pair()
    module = atrous.nn.AddAct(torch.nn.RReLU(0.1, 0.3), dropout=0.5, backend=backend).eval()
    state = torch.get_rng_state()
    torch.testing.assert_close(module(x, o), torch.nn.functional.leaky_relu(x + o, 0.2))
    assert torch.equal(state, torch.get_rng_state())
    module.train()
    assert (module(x, o) == 0).any()


def test_edges_of_the_probability(backend):
    x, o = pair()
    assert torch.equal(atrous.add_act(x, o, dropout=0.0, training=True, backend=backend), x + o)
    assert not atrous.add_act(x, o, dropout=1.0, training=True, backend=backend).any()
    assert torch.equal(atrous.add_act(x, o, dropout=1.0, training=False, backend=backend), x + o)
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="dropout"):
            atrous.add_act(x, o, dropout=wrong, training=True, backend=backend)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dropout, slope", LAYERS.values(), ids=LAYERS)
def test_checkpointing_reproduces_the_draws(backend, dropout, slope, reentrant):
    def layer(x, o):
        return atrous.add_act(x, o, slope=slope, dropout=dropout, training=True, backend=backend)

    x, o = pair()
    y = checkpoint(layer, x, o, use_reentrant=reentrant)
    y.sum().backward()
    torch.testing.assert_close(x.grad, factors(x, o, y), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dropout, slope", LAYERS.values(), ids=LAYERS)
def test_layouts_draw_the_same_for_each_element(backend, dropout, slope):
    x, o = pair()
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        a, b = (t.detach().contiguous(memory_format=layout).requires_grad_() for t in (x, o))
        y = atrous.add_act(a, b, slope=slope, dropout=dropout, training=True, backend=backend)
        results.append((y, *torch.autograd.grad(y.sum(), (a, b))))
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("slope", SLOPES.values(), ids=SLOPES)
def test_gradcheck_with_a_fixed_seed(backend, slope):
    x, o = pair(1, 4, 3, 2, dtype=torch.float64)
    slope = slope.double().requires_grad_() if isinstance(slope, torch.Tensor) else slope

    def layer(x, o, *learned):
        torch.manual_seed(2)
        return atrous.add_act(x, o, slope=learned[0] if learned else slope, dropout=0.3, training=True, backend=backend)

    assert gradcheck(layer, (x, o, slope) if isinstance(slope, torch.Tensor) else (x, o))
