"""CASES.md, activation: zeros, NaN and infinities, slopes of every kind, what RReLU and dropout draw."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from oracle import agree, close, make_plain, make_site, ours_of, refuse
from torch import nn

import atrous

INF, NAN = math.inf, math.nan
EDGES = torch.tensor([-0.0, 0.0, NAN, INF, -INF, 1e-45, -1e-45, 3e38, -3e38, -1.0, 2.0, -0.0]).reshape(1, 2, 2, 3)
NUMBERS = [-0.5, 0.0, 0.01, 1, 1.5, -1.0, INF]


def slopes():
    tensors = {f"tensor {value}": torch.full((2,), float(value)) for value in NUMBERS}
    numbers = {f"number {value}": value for value in NUMBERS}
    return {"relu": "relu", "shared": torch.tensor([-0.3])} | numbers | tensors


def same_bits(found, expected):
    """Equal, NaN where it is NaN, and zeros of the same sign."""
    assert torch.equal(found.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    assert torch.equal(found.isnan(), expected.isnan())
    known = ~expected.isnan()
    assert torch.equal(torch.signbit(found)[known], torch.signbit(expected)[known])


@pytest.mark.parametrize("slope", slopes().values(), ids=slopes())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_edges(row, slope, dtype):
    """add_act: x + x is exact, so the activation alone is seen; bn_act with beta -0.0 keeps a zero's sign too."""
    x = EDGES.to(dtype)
    slope = slope.to(dtype) if isinstance(slope, torch.Tensor) else slope
    same_bits(atrous.add_act(x, x, slope=slope, backend=row), oracle.add_act(x, x, slope=slope))
    zeros, ones = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)
    # Beside a variance of 1 this eps is not seen; torch 2.11 refuses 0.
    norm = dict(running_mean=zeros, running_var=ones, bias=-zeros, eps=1e-30, slope=slope)
    same_bits(atrous.bn_act(x, **norm, backend=row), oracle.bn_act(x, **norm))


@pytest.mark.parametrize("slope", ["relu", 0.1, torch.rand(6)], ids=["relu", "number", "tensor"])
@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_nan_and_infinity_go_through_the_convolution(row, slope, special):
    site = make_site(slope=slope, padding=1)
    site["input"][1, 2, 4, 4] = special
    y = agree("conv_bn_act", row, site)
    assert torch.isfinite(y[0]).all() and not torch.isfinite(y[1, :, 3:6, 3:6]).all()


@pytest.mark.parametrize("slope", slopes().values(), ids=slopes())
def test_slopes_after_a_convolution(row, slope):
    site = make_site(out=2, slope=slope, residual=torch.randn(2, 2, 7, 6))
    agree("conv_bn_act", row, site)
    agree("conv_bn_act", row, site | dict(residual_after_act=True))


@pytest.mark.parametrize("slope", [s for s in slopes() if s != "number inf" and s != "tensor inf"])
def test_gradient_at_zero_is_the_slope(row, slope):
    slope = slopes()[slope]
    learned, statistics = isinstance(slope, torch.Tensor), (torch.zeros(2), torch.ones(2))

    def gradients(house, **options):
        for second, function in ((None, house.add_act), (statistics, house.bn_act)):
            x = torch.tensor([0.0, -0.0, 1.0, -1.0]).reshape(1, 2, 1, 2).requires_grad_()
            s = slope.clone().requires_grad_() if learned else slope
            function(x, *(second or (x,)), slope=s, **options).sum().backward()
            yield from (x.grad, s.grad) if learned else (x.grad,)

    found = list(gradients(atrous, backend=row))
    torch.testing.assert_close(found, list(gradients(oracle)))
    value = 0.0 if isinstance(slope, str) else slope[0] if learned else float(slope)
    assert found[0].flatten()[0] == 2 * value


@pytest.mark.parametrize("count", [1, 6])
def test_shared_slope_sums_its_gradient(row, count):
    """An integer-valued site: every sum is exact, whatever its order."""
    gradients = []
    for call in (atrous.conv_bn_act, oracle.conv_bn_act):
        slope = torch.full((count,), 0.25, requires_grad=True)
        options = dict(backend=row) if call is atrous.conv_bn_act else {}
        x = torch.arange(-36.0, 36.0).reshape(2, 4, 3, 3)
        call(x, torch.ones(6, 4, 1, 1), slope=slope, **options).sum().backward()
        gradients.append(slope.grad)
    assert torch.equal(*gradients) and gradients[0].shape == (count,) and gradients[0].abs().min() > 0


RANDOM = (0.125, 0.375)


def drawn(row, layout=torch.contiguous_format):
    """The slopes that a call with RANDOM draws, where u is negative; -1 elsewhere."""
    torch.manual_seed(5)
    site = make_site(batch=3, size=(13, 29), padding=1)
    site["input"] = site["input"].to(memory_format=layout)
    u = oracle.conv_bn_act(**site)
    y = atrous.conv_bn_act(**site, slope=RANDOM, backend=row)
    torch.testing.assert_close(y[u > 0.01], u[u > 0.01], rtol=1e-4, atol=1e-5)
    return torch.where(u < -0.01, y / u, -1.0)


def test_random_slopes_are_uniform_between_the_bounds(row):
    slopes = drawn(row)
    slopes = slopes[slopes >= 0]
    assert slopes.min() >= RANDOM[0] - 1e-3 and slopes.max() <= RANDOM[1] + 1e-3 and slopes.numel() > 1000
    assert abs(slopes.mean() - 0.25) < 0.01 and abs(slopes.std() - 0.25 / 12**0.5) < 0.01
    assert abs(torch.corrcoef(torch.stack((slopes[1:], slopes[:-1])))[0, 1]) < 0.1


def test_random_slopes_follow_the_seed(row):
    """Drawn always, also without training; the same from the same seed, others from the next call."""
    site = make_site(slope=RANDOM, padding=1)
    torch.manual_seed(3)
    first, second = (atrous.conv_bn_act(**site, backend=row) for _ in range(2))
    torch.manual_seed(3)
    again = atrous.conv_bn_act(**site, backend=row)
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_random_slopes_do_not_depend_on_row_or_layout(row):
    nchw, nhwc = torch.contiguous_format, torch.channels_last
    first, *others = (drawn(*way) for way in (("library", nchw), (row, nchw), (row, nhwc)))
    for other in others:
        both = (first >= 0) & (other >= 0)
        torch.testing.assert_close(other[both], first[both], rtol=0, atol=2e-3)


def test_rrelu_module(row):
    """In eval the mean of the bounds; in training the backward uses the slopes that the forward drew."""
    plain, x = make_plain(nn.RReLU(*RANDOM)).eval(), torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        close(ours_of(plain, row)(x), plain(x), oracle.wide(plain)(x.double()))
    z = torch.randn(2, 6, 9, 8, requires_grad=True)
    y = atrous.add_act(z, torch.zeros(()), slope=RANDOM, training=True, backend=row)
    y.sum().backward()
    torch.testing.assert_close(z.grad, torch.where(z > 0, 1.0, y / z).detach(), rtol=1e-5, atol=1e-5)
    ours = ours_of(plain.train(), row)
    torch.manual_seed(2)
    first = ours(x)
    torch.manual_seed(2)
    assert torch.equal(first, ours(x)) and not torch.equal(first, ours(x))


@pytest.mark.parametrize("bounds", [(0.5, 0.1), (0.1, INF), (-INF, 0.1)])
@pytest.mark.parametrize("training", [True, False])
def test_rrelu_bounds_are_refused(row, bounds, training):
    site = make_site(slope=bounds)
    refuse(lambda: atrous.conv_bn_act(**site, backend=row), lambda: oracle.conv_bn_act(**site), "slope")
    plain, x = make_plain(nn.RReLU(*bounds)).train(training), torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        refuse(lambda: ours_of(plain, row)(x), lambda: plain(x), "slope|act|lower|upper")


def test_rrelu_with_equal_bounds_is_a_leaky_relu(row):
    site = make_site()
    torch.testing.assert_close(
        atrous.conv_bn_act(**site, slope=(0.25, 0.25), backend=row), atrous.conv_bn_act(**site, slope=0.25, backend=row)
    )


@pytest.mark.parametrize("slope", ["relu", 0.25])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_none_and_of_all(row, slope, p):
    x, other = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    x[0, 0, 0, 0] = NAN
    for training in (True, False):
        agree("add_act", row, dict(input=x, other=other, slope=slope, dropout=p, training=training))


def test_dropout_in_between(row):
    x = torch.rand(8, 16, 13, 9).add(0.5).requires_grad_()
    torch.manual_seed(1)
    y = atrous.add_act(x, x.detach(), slope="relu", dropout=0.25, training=True, backend=row)
    torch.manual_seed(1)
    again = atrous.add_act(x, x.detach(), slope="relu", dropout=0.25, training=True, backend=row)
    kept = y != 0
    y.sum().backward()
    assert torch.equal(y, again) and abs(kept.float().mean() - 0.75) < 0.03
    torch.testing.assert_close(y[kept], (2 * x / 0.75)[kept])
    torch.testing.assert_close(x.grad, kept / 0.75)


@pytest.mark.parametrize("p", [-0.1, 1.1, NAN])
def test_dropout_outside_its_range(row, p):
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="dropout"):
        atrous.add_act(x, x, dropout=p, training=True, backend=row)


def test_an_unknown_activation_is_refused():
    with pytest.raises(TypeError, match=r"(?s)act.*Sigmoid"):
        atrous.nn.ConvBNAct2d(nn.Conv2d(1, 1, 1), None, nn.Sigmoid())(torch.randn(1, 1, 1, 1))
    for slope in ("gelu", (0.1,), (0.1, 0.2, 0.3), [0.1, 0.2, 0.3], object()):
        with pytest.raises((TypeError, ValueError), match="slope"):
            atrous.conv_bn_act(**make_site(slope=slope))
