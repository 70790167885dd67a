"""Edge cases of activations: zeros, NaN and infinities, each kind of slope, the draws of RReLU and dropout."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from oracle import agree, conv_arguments, make_plain, ours_of, refuse
from torch import nn

import atrous
from atrous.testing import assert_tensor

INF, NAN = math.inf, math.nan
EDGES = torch.tensor([-0.0, 0.0, NAN, INF, -INF, 1e-45, -1e-45, 3e38, -3e38, -1.0, 2.0, -0.0]).reshape(1, 2, 2, 3)
NUMBERS = [-0.5, 0.0, 0.01, 1, 1.5, -1.0, INF]


def slopes():
    tensors = {f"tensor {value}": torch.full((2,), float(value)) for value in NUMBERS}
    numbers = {f"number {value}": value for value in NUMBERS}
    return {"relu": "relu", "shared": torch.tensor([-0.3])} | numbers | tensors


def same_bits(result, expected):
    """Asserts equal values, NaN at the same places, and zeros of the same sign."""
    assert torch.equal(result.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    assert torch.equal(result.isnan(), expected.isnan())
    known = ~expected.isnan()
    assert torch.equal(torch.signbit(result)[known], torch.signbit(expected)[known])


@pytest.mark.parametrize("slope", slopes().values(), ids=slopes())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_edges(backend, slope, dtype):
    """In add_act x + x is exact, so only the activation matters; in bn_act beta is -0.0, so zeros keep their sign."""
    x = EDGES.to(dtype)
    slope = slope.to(dtype) if isinstance(slope, torch.Tensor) else slope
    same_bits(atrous.add_act(x, x, slope=slope, backend=backend), oracle.add_act(x, x, slope=slope))
    zeros, ones = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)
    # This eps vanishes beside a variance of 1; torch 2.11 refuses 0.
    norm = dict(running_mean=zeros, running_var=ones, bias=-zeros, eps=1e-30, slope=slope)
    same_bits(atrous.bn_act(x, **norm, backend=backend), oracle.bn_act(x, **norm))


@pytest.mark.parametrize("slope", ["relu", 0.1, torch.rand(6)], ids=["relu", "number", "tensor"])
@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_nan_and_infinity_go_through_the_convolution(backend, slope, special):
    arguments = conv_arguments(slope=slope, padding=1)
    arguments["input"][1, 2, 4, 4] = special
    y = agree("conv_bn_act", backend, arguments)
    assert torch.isfinite(y[0]).all() and not torch.isfinite(y[1, :, 3:6, 3:6]).all()


@pytest.mark.parametrize("slope", slopes().values(), ids=slopes())
def test_slopes_after_a_convolution(backend, slope):
    arguments = conv_arguments(out=2, slope=slope, residual=torch.randn(2, 2, 7, 6))
    agree("conv_bn_act", backend, arguments)
    agree("conv_bn_act", backend, arguments | dict(residual_after_act=True))


@pytest.mark.parametrize("slope", [s for s in slopes() if s != "number inf" and s != "tensor inf"])
def test_gradient_at_zero_is_the_slope(backend, slope):
    slope = slopes()[slope]
    learned, statistics = isinstance(slope, torch.Tensor), (torch.zeros(2), torch.ones(2))

    def gradients(api, **options):
        for second, function in ((None, api.add_act), (statistics, api.bn_act)):
            x = torch.tensor([0.0, -0.0, 1.0, -1.0]).reshape(1, 2, 1, 2).requires_grad_()
            s = slope.clone().requires_grad_() if learned else slope
            function(x, *(second or (x,)), slope=s, **options).sum().backward()
            yield from (x.grad, s.grad) if learned else (x.grad,)

    result = list(gradients(atrous, backend=backend))
    torch.testing.assert_close(result, list(gradients(oracle)))
    value = 0.0 if isinstance(slope, str) else slope[0] if learned else float(slope)
    assert result[0].flatten()[0] == 2 * value


@pytest.mark.parametrize("count", [1, 6])
def test_shared_slope_sums_its_gradient(backend, count):
    """All values are integers, so sums are exact in any order."""
    gradients = []
    for call in (atrous.conv_bn_act, oracle.conv_bn_act):
        slope = torch.full((count,), 0.25, requires_grad=True)
        options = dict(backend=backend) if call is atrous.conv_bn_act else {}
        x = torch.arange(-36.0, 36.0).reshape(2, 4, 3, 3)
        call(x, torch.ones(6, 4, 1, 1), slope=slope, **options).sum().backward()
        gradients.append(slope.grad)
    assert torch.equal(*gradients) and gradients[0].shape == (count,) and gradients[0].abs().min() > 0


def test_a_slope_without_dimensions(backend):
    """F.prelu takes it as a shared one."""
    gradients = []
    for module in (atrous, oracle):
        options = dict(backend=backend) if module is atrous else {}
        slope = torch.tensor(0.25, requires_grad=True)
        x = torch.arange(-8.0, 8.0).reshape(2, 2, 2, 2)
        y = (
            module.add_act(x, x, slope=slope, **options),
            module.conv_bn_act(x, torch.ones(3, 2, 1, 1), slope=slope, **options),
        )
        (y[0].sum() + y[1].sum()).backward()
        gradients.append((*y, slope.grad))
    torch.testing.assert_close(*gradients)
    arguments = conv_arguments(slope=torch.rand(1, 1))
    refuse(lambda: atrous.conv_bn_act(**arguments, backend=backend), lambda: oracle.conv_bn_act(**arguments), "slope")


RANDOM = (0.125, 0.375)


def drawn(backend, layout=torch.contiguous_format):
    """Returns the slopes that a call with RANDOM draws where u is negative, -1 elsewhere."""
    torch.manual_seed(5)
    arguments = conv_arguments(batch=3, size=(13, 29), padding=1)
    arguments["input"] = arguments["input"].to(memory_format=layout)
    u = oracle.conv_bn_act(**arguments)
    y = atrous.conv_bn_act(**arguments, slope=RANDOM, backend=backend)
    torch.testing.assert_close(y[u > 0.01], u[u > 0.01], rtol=1e-4, atol=1e-5)
    return torch.where(u < -0.01, y / u, -1.0)


def test_random_slopes_are_uniform_between_the_bounds(backend):
    slopes = drawn(backend)
    slopes = slopes[slopes >= 0]
    assert slopes.min() >= RANDOM[0] - 1e-3 and slopes.max() <= RANDOM[1] + 1e-3 and slopes.numel() > 1000
    assert abs(slopes.mean() - 0.25) < 0.01 and abs(slopes.std() - 0.25 / 12**0.5) < 0.01
    assert abs(torch.corrcoef(torch.stack((slopes[1:], slopes[:-1])))[0, 1]) < 0.1


def test_random_slopes_follow_the_seed(backend):
    """Slopes are drawn without training too; the same for the same seed, different in the next call."""
    arguments = conv_arguments(slope=RANDOM, padding=1)
    torch.manual_seed(3)
    first, second = (atrous.conv_bn_act(**arguments, backend=backend) for _ in range(2))
    torch.manual_seed(3)
    again = atrous.conv_bn_act(**arguments, backend=backend)
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_random_slopes_do_not_depend_on_backend_or_layout(backend):
    nchw, nhwc = torch.contiguous_format, torch.channels_last
    first, *others = (drawn(*way) for way in (("library", nchw), (backend, nchw), (backend, nhwc)))
    for other in others:
        both = (first >= 0) & (other >= 0)
        torch.testing.assert_close(other[both], first[both], rtol=0, atol=2e-3)


def test_rrelu_module(backend):
    """The slope is the mean of the bounds in eval; in training the backward uses the slopes of the forward."""
    plain, x = make_plain(nn.RReLU(*RANDOM)).eval(), torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        assert_tensor(ours_of(plain, backend)(x), plain(x), oracle.wide(plain)(x.double()))
    z = torch.randn(2, 6, 9, 8, requires_grad=True)
    y = atrous.add_act(z, torch.zeros(()), slope=RANDOM, training=True, backend=backend)
    y.sum().backward()
    torch.testing.assert_close(z.grad, torch.where(z > 0, 1.0, y / z).detach(), rtol=1e-5, atol=1e-5)
    ours = ours_of(plain.train(), backend)
    torch.manual_seed(2)
    first = ours(x)
    torch.manual_seed(2)
    assert torch.equal(first, ours(x)) and not torch.equal(first, ours(x))


@pytest.mark.parametrize("bounds", [(0.5, 0.1), (0.1, INF), (-INF, 0.1)])
@pytest.mark.parametrize("training", [True, False])
def test_rrelu_bounds_are_refused(backend, bounds, training):
    arguments = conv_arguments(slope=bounds)
    refuse(lambda: atrous.conv_bn_act(**arguments, backend=backend), lambda: oracle.conv_bn_act(**arguments), "slope")
    plain, x = make_plain(nn.RReLU(*bounds)).train(training), torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        refuse(lambda: ours_of(plain, backend)(x), lambda: plain(x), "slope|act|lower|upper")


def test_rrelu_with_equal_bounds_is_a_leaky_relu(backend):
    arguments = conv_arguments()
    torch.testing.assert_close(
        atrous.conv_bn_act(**arguments, slope=(0.25, 0.25), backend=backend),
        atrous.conv_bn_act(**arguments, slope=0.25, backend=backend),
    )


@pytest.mark.parametrize("slope", ["relu", 0.25])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_none_and_of_all(backend, slope, p):
    x, other = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    x[0, 0, 0, 0] = NAN
    for training in (True, False):
        agree("add_act", backend, dict(input=x, other=other, slope=slope, dropout=p, training=training))


def test_dropout_in_between(backend):
    x = torch.rand(8, 16, 13, 9).add(0.5).requires_grad_()
    torch.manual_seed(1)
    y = atrous.add_act(x, x.detach(), slope="relu", dropout=0.25, training=True, backend=backend)
    torch.manual_seed(1)
    again = atrous.add_act(x, x.detach(), slope="relu", dropout=0.25, training=True, backend=backend)
    kept = y != 0
    y.sum().backward()
    assert torch.equal(y, again) and abs(kept.float().mean() - 0.75) < 0.03
    torch.testing.assert_close(y[kept], (2 * x / 0.75)[kept])
    torch.testing.assert_close(x.grad, kept / 0.75)


@pytest.mark.parametrize("p", [-0.1, 1.1, NAN])
def test_dropout_outside_its_range(backend, p):
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="dropout"):
        atrous.add_act(x, x, dropout=p, training=True, backend=backend)


def test_an_unknown_activation_is_refused():
    with pytest.raises(TypeError, match=r"(?s)act.*Sigmoid"):
        atrous.nn.ConvBNAct2d(nn.Conv2d(1, 1, 1), None, nn.Sigmoid())(torch.randn(1, 1, 1, 1))
    for slope in ("gelu", (0.1,), (0.1, 0.2, 0.3), [0.1, 0.2, 0.3], object()):
        with pytest.raises((TypeError, ValueError), match="slope"):
            atrous.conv_bn_act(**conv_arguments(slope=slope))
