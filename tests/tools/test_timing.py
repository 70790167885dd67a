"""Interleaved timing: turns, repeats within the budget, and the definition of a measurement."""

import pytest
import torch

from atrous.tools import timing

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A call takes as many milliseconds as it returns."""
    monkeypatch.setattr(timing, "milliseconds", lambda call, device, calls=1: call())


def test_a_measurement_is_the_mean_of_its_calls(monkeypatch):
    ticks = iter([10.0, 10.6])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    called = []
    assert timing.milliseconds(lambda: called.append(1), CPU, calls=3) == pytest.approx(200.0)
    assert len(called) == 3


def test_variants_take_turns(clock):
    order = []
    calls = {name: (lambda name=name: order.append(name) or 1.0) for name in "abc"}
    times = timing.interleaved(calls, CPU, seconds=0, least=4, warmup=2)
    assert order == list("abc") * 6
    assert times == {name: [1.0] * 4 for name in "abc"}


def test_a_slow_variant_gets_fewer_repeats_spread_over_the_run(clock):
    order = []
    calls = {"fast": lambda: order.append("fast") or 10.0, "slow": lambda: order.append("slow") or 1000.0}
    times = timing.interleaved(calls, CPU, seconds=0.4, least=3, most=15, warmup=0)
    assert {name: len(values) for name, values in times.items()} == {"fast": 15, "slow": 3}
    where = [index for index, name in enumerate(order) if name == "slow"]
    assert max(b - a for a, b in zip(where, where[1:])) < len(order) / 2


def test_progress_adds_up_to_one(clock):
    steps = []
    timing.interleaved({"a": lambda: 1.0}, CPU, seconds=0, least=5, progress=lambda rounds: steps.append(1 / rounds))
    assert sum(steps) == pytest.approx(1.0)


def test_medians():
    assert timing.medians({"a": [3.0, 1.0, 100.0], "b": [1.0, 2.0]}) == {"a": 3.0, "b": 1.5}


def test_a_ratio_and_its_spread():
    assert timing.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == (2.0, 0.0)
    noisy = timing.ratio([1.0, 1.0, 1.2, 1.2, 1.1], [1.0] * 5)
    assert noisy.spread == pytest.approx(0.1 / 1.1) and not noisy.counted


def test_a_ratio_of_fewer_repeats_takes_the_times_that_were_measured_nearest():
    """The machine becomes half as fast in the middle of the run; the ratio stays the same all through it."""
    often = [1.0] * 5 + [2.0] * 5
    assert timing.ratio(often, [10.0, 10.0, 20.0, 20.0]) == (0.1, 0.0)
    assert timing.ratio([10.0, 10.0, 20.0, 20.0], often) == (10.0, 0.0)
    assert timing.ratio([3.0], [1.5]) == (2.0, 0.0)
