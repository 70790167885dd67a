"""Rates: which leave holes, and the suggestion beside an exhaustive search."""

import itertools
import math
import random
import re

import pytest

import atrous
from atrous.audit import Stack
from atrous.audit.rates import has_holes, hdc, suggest


def offsets(rates, kernels):
    """Every position along one axis that the layers read."""
    reached = {0}
    for rate, kernel in zip(rates, kernels):
        reached = {position + step * rate for position in reached for step in range(kernel)}
    return reached


def field(rates, kernels):
    return 1 + sum((kernel - 1) * rate for rate, kernel in zip(rates, kernels))


def best(kernels, smallest):
    """By exhaustive search: rates without holes whose field is at least this large, by the documented objective."""
    ordered = []
    for rates in itertools.product(range(1, smallest + 1), repeat=len(kernels)):
        size = field(rates, kernels)
        if size >= smallest and len(offsets(rates, kernels)) == size:
            ordered.append((size, sorted(rates, reverse=True), rates))
    return min(ordered, default=None)


def drawn(seed, most=4):
    draw = random.Random(seed)
    layers = draw.randint(1, most)
    return tuple(draw.randint(1, 6) for _ in range(layers)), tuple(draw.choice([2, 3, 3, 4]) for _ in range(layers))


@pytest.mark.parametrize("seed", range(200))
def test_holes_are_those_of_the_definition(seed):
    rates, kernels = drawn(seed, most=6)
    assert has_holes(Stack(rates, kernels)) == (len(offsets(rates, kernels)) < field(rates, kernels))


@pytest.mark.parametrize("seed", range(80))
def test_suggestions_are_those_of_an_exhaustive_search(seed):
    rates, kernels = drawn(seed)
    if seed % 2:
        kernels = (3,) * len(rates)
    stack, wanted = Stack(rates, kernels), field(rates, kernels)
    suggestion = suggest(stack)
    if len(offsets(rates, kernels)) == wanted:
        assert suggestion is None
        return
    # Each position needs a choice of its own, so that the product of the kernel sizes bounds the field.
    assert (math.prod(kernels) < wanted) == (suggestion.stack is None)
    expected = best(kernels, wanted) if wanted ** len(kernels) < 10**5 else None  # larger ones take too long
    if expected:
        best_one = suggestion.stack
        assert (best_one.field, sorted(best_one.rates, reverse=True)) == expected[:2]
        assert best_one.kernel_sizes == kernels and (best_one.rates == expected[2] or len(set(kernels)) > 1)
    elif suggestion.stack is None:
        assert suggestion.longest.field == math.prod(kernels) and suggestion.longest.kernel_sizes == kernels
        added = len(suggestion.deeper.rates) - len(rates)
        assert added > 0 and suggestion.deeper.kernel_sizes == kernels + (max(kernels),) * added
        assert suggestion.deeper.field >= wanted > math.prod(kernels) * max(kernels) ** (added - 1)
    for stack in suggestion.stacks:
        assert len(offsets(stack.rates, stack.kernel_sizes)) == stack.field == field(stack.rates, stack.kernel_sizes)


@pytest.mark.parametrize("rates, expected", [
    ((2, 2, 2), (1, 2, 3)), ((1, 2, 9), (1, 3, 8)), ((3, 3, 3), (1, 3, 5)), ((2,) * 6, (1, 2, 2, 2, 2, 3)),
])  # fmt: skip
def test_known_suggestions(rates, expected):
    assert suggest(Stack(rates, (3,) * len(rates))).stack.rates == expected


@pytest.mark.parametrize("rates, kernels, expected", [
    ((5, 1, 1), (2, 2, 3), (1, 1, 3)), ((7, 1, 1), (2, 3, 3), (1, 2, 3)), ((7, 1, 1), (2, 3, 4), (1, 1, 3)),
])  # fmt: skip
def test_ties_go_to_the_smallest_rates(rates, kernels, expected):
    """The largest rate may belong to several kernels, with one field: the second largest decides then, and so on."""
    wanted = field(rates, kernels)
    suggestion = suggest(Stack(rates, kernels)).stack
    assert suggestion == Stack(expected, kernels) and suggestion.field == wanted
    assert best(kernels, wanted)[:2] == (wanted, sorted(expected, reverse=True))


def test_a_field_that_no_rates_have_without_holes():
    suggestion = atrous.audit_dilation([2, 4, 8]).suggestion
    assert suggestion.stack is None
    assert (suggestion.longest.rates, suggestion.longest.field) == ((1, 3, 9), 27)
    assert (suggestion.deeper.rates, suggestion.deeper.field) == ((1, 3, 5, 5), 29)
    assert re.search(r"longest of 3 are 1, 3, 9 \(27 pixels\).* 4: 1, 3, 5, 5 \(29 pixels\)", str(suggestion))


@pytest.mark.parametrize("rates, expected", [
    ((2, 2, 2), True), ((1, 2, 5), True), ((1, 2, 9), False), ((3, 4, 9), False), ((1, 2, 3), True), ((2, 4, 8), False),
    ((4,), None), ((1, 3), True), ((1, 4), False),
])  # fmt: skip
def test_hdc(rates, expected):
    """The examples of Wang et al.: M_2 is 2 for 1, 2, 5 and 4 for 1, 2, 9, above the kernel size 3."""
    assert hdc(Stack(rates, (3,) * len(rates))) is expected


def test_hdc_needs_one_kernel_size():
    assert hdc(Stack((1, 2), (3, 5))) is None and hdc(Stack((1, 2), (1, 1))) is None


def test_long_stacks_take_no_time():
    suggestion = suggest(Stack((12,) * 12, (3,) * 12))
    assert suggestion.stack.field == 289 and not has_holes(suggestion.stack)
