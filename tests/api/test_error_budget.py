"""The two rules of the error budget in atrous.testing: a planted error just over the budget fails, one below passes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from parameters import DTYPES

from atrous import testing
from atrous.testing import OverBudget, assert_elements, assert_tensor, largest_error, roundings, tensor_budget

INF, NAN = math.inf, math.nan
PLACES = "expected NaN and infinities where the fp64 result has them"


def eps(dtype):
    return torch.finfo(dtype).eps


def accumulator_eps(dtype):
    return eps(torch.float64 if dtype == torch.float64 else torch.float32)


def planted(error, dtype=torch.float64):
    """y, plain and exact: y is off by `error`, and plain by 2**-6, at another element; max |exact| is 4."""
    exact = torch.tensor([0.0, 1.0, -4.0, 0.0], dtype=torch.float64)
    plain, y = exact.clone(), exact.clone()
    plain[1] += 2.0**-6
    y[3] += error
    return y.to(dtype), plain.to(dtype), exact


@pytest.mark.parametrize("options, budget", [
    ({}, 1.25 * 2**-6),
    ({"ratio": 2.0}, 2 * 2**-6),
    ({"relative": 2.0**-4}, 4 * 2**-4),  # more than plain's error
    ({"relative": 2.0**-12}, 1.25 * 2**-6),
    ({"ratio": 0.0, "relative": 2.0**-12}, 4 * 2**-12),
])  # fmt: skip
def test_a_tensor(options, budget):
    y, plain, exact = planted(0.99 * budget)
    assert tensor_budget(plain, exact, **options) == budget
    assert_tensor(y, plain, exact, **options)
    for sign in (-1, 1):
        y, plain, exact = planted(sign * 1.01 * budget)
        with pytest.raises(OverBudget, match="^dz: error .* budget .* plain torch 0.0156$"):
            assert_tensor(y, plain, exact, "dz", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_plain_result_without_an_error_allows_roundings(dtype):
    """Half a unit of the result and 32 of the accumulator, at the largest value."""
    relative, exact = 0.5 * eps(dtype) + 32 * accumulator_eps(dtype), planted(0.0)[2]
    assert roundings(dtype) == relative and tensor_budget(exact.to(dtype), exact) == 4 * relative
    assert roundings(dtype, stored=2, computed=0) == 2 * eps(dtype)
    assert roundings(torch.float64, arithmetic=dtype) == 0.5 * eps(torch.float64) + 32 * accumulator_eps(dtype)


@pytest.mark.parametrize("values, error", [
    ([1.0, NAN, INF, -INF], 0.0),
    ([1.5, NAN, INF, -INF], 0.5),
    ([1.0, 0.0, INF, -INF], INF),
    ([NAN, NAN, INF, -INF], INF),
    ([1.0, NAN, -INF, -INF], INF),
    ([1.0, NAN, NAN, -INF], INF),
    ([1.0, NAN, INF, 3e38], INF),
    ([INF, NAN, INF, -INF], INF),
])  # fmt: skip
def test_nan_and_infinities_must_be_where_the_fp64_result_has_them(values, error):
    """Elsewhere they are not reported as OverBudget, which other values might not repeat."""
    y, exact = torch.tensor(values), torch.tensor([1.0, NAN, INF, -INF], dtype=torch.float64)
    assert largest_error(y, exact) == error
    if error == 0:
        return assert_tensor(y, exact.float(), exact)
    with pytest.raises(AssertionError, match=PLACES if error == INF else "error 0.5") as raised:
        assert_tensor(y, exact.float(), exact)
    assert isinstance(raised.value, OverBudget) == (error < INF)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_plain_result_that_is_not_finite_allows_no_error(bad):
    y, plain, exact = planted(1e-3, torch.float32)
    plain[1] = bad
    with pytest.raises(OverBudget):
        assert_tensor(y, plain, exact)


def test_shape_dtype_and_device_are_those_of_the_plain_result():
    y, plain, exact = planted(0.0, torch.float32)
    for wrong, message in ((y[:3], "shape"), (y.double(), "dtype"), (y.to("meta"), "device")):
        with pytest.raises(AssertionError, match=f"^y: expected {message} "):
            assert_tensor(wrong, plain, exact)
    assert_tensor(y[:0], plain[:0], exact[:0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"stored": 0}, {"more": 2.0**-5}], ids=str)
def test_an_element(options, dtype):
    """Half a unit of each element, 8 of the accumulator at its own magnitude, and errors that are known otherwise.

    The error is planted in the fp64 result, since y has no values so close to one another.
    """
    exact, magnitude = torch.tensor([1.0, 64.0, 0.0]).double(), torch.tensor([4.0, 64.0, 2.0]).double()
    budget = options.get("stored", 0.5) * eps(dtype) * exact + 8 * accumulator_eps(dtype) * magnitude
    budget = budget + options.get("more", 0.0) + torch.finfo(dtype).smallest_normal * eps(dtype)
    for index, sign in itertools.product(range(3), (-1, 1)):
        shifted = exact.clone()
        shifted[index] = exact[index] + 0.9 * sign * budget[index]
        assert_elements(exact.to(dtype), shifted, magnitude, computed=8, **options)
        shifted[index] = exact[index] + 1.1 * sign * budget[index]
        with pytest.raises(AssertionError, match="^dz: 1 of 3 over their budget, by up to "):
            assert_elements(exact.to(dtype), shifted, magnitude, "dz", computed=8, **options)


def test_an_element_that_is_nan_or_of_another_shape():
    exact = torch.ones(3).double()
    with pytest.raises(AssertionError, match="^y: 1 of 3 are NaN"):
        assert_elements(torch.tensor([1.0, NAN, 1.0]), exact, exact, computed=8)
    with pytest.raises(AssertionError, match="^y: expected shape "):
        assert_elements(torch.ones(1), exact, exact, computed=8)
    assert_elements(torch.ones(0), exact[:0], exact[:0], computed=8)


@pytest.mark.parametrize("case", testing.CASES, ids=lambda case: case.name)
def test_a_call(case):
    """assert_close takes 1.25 times eager's error, or four roundings."""
    kwargs = testing.arguments(case)
    plain, exact = testing.eager(kwargs), testing.truth(kwargs)
    budget = tensor_budget(plain, exact, relative=4 * eps(torch.float32))
    y = plain.clone()
    y[0, 0, 0, 0] = exact[0, 0, 0, 0] + 0.8 * budget
    testing.assert_close(y, kwargs)
    y[0, 0, 0, 0] = exact[0, 0, 0, 0] + 1.2 * budget
    with pytest.raises(OverBudget):
        testing.assert_close(y, kwargs)
