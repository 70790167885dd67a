"""The tuner's search among Triton's configs within a time budget, on a clock that the test sets."""

import threading

import pytest
import torch
from tuner_cases import CPU, ODD, SMALL, tuned

from atrous import tuning
from atrous.core.spec import Spec
from atrous.tools import timing
from atrous.tools.explain.conv_layers import ConvLayer
from atrous.tools.tune import measure as tuner
from atrous.tools.tune.candidates import Form
from atrous.tools.tune.report import table
from atrous.triton_kernels.conv.configs import CONV
from atrous.tuning.format import Entry

pytestmark = pytest.mark.usefixtures("tuning_folder")  # the user's folder of tables, which belongs to one test alone


@pytest.fixture
def configs(monkeypatch):
    """Backend triton as on a GPU: five configs, two of them fast; a call takes the milliseconds listed here."""
    took = dict(zip(CONV, (3.0, 1.0, 1.5, 9.0, 9.0))) | {"library": 4.0}
    called = []

    def ready(runs, device):
        return lambda: called.append(runs[0].candidate) or took[runs[0].candidate]

    class Run:
        def __init__(self, candidate, form, kwargs):
            self.candidate = candidate

        def __call__(self):
            return None

    monkeypatch.setattr(tuner, "candidates", lambda layer, kwargs: list(took))
    monkeypatch.setattr(tuner, "call", Run)
    monkeypatch.setattr(tuner, "check", lambda y, expected: None)
    monkeypatch.setattr(tuner, "predictions", lambda configs, kwargs: {config: took[config] for config in configs})
    monkeypatch.setattr(tuner, "at_once", ready)
    monkeypatch.setattr(timing, "milliseconds", lambda call, device, calls=1: call())
    return called


def test_slow_configs_are_not_measured_again(short, configs):
    result = tuned(SMALL)[0]
    assert result.entry == Entry("triton", CONV[1], {"library": 4.0, "triton": 1.0})
    assert len(result.milliseconds) == 6 and result.milliseconds[f"triton {CONV[0].describe()}"] == 3.0
    names = configs[: len(configs) // 2]  # those of the first of the two forms
    assert names.count(CONV[0]) == 1 and names.count(CONV[2]) == 1 + tuner.WARMUP + tuner.MIN_ROUNDS
    assert names.count("library") == names.count(CONV[2])


@pytest.fixture
def clock(monkeypatch):
    """clock[0] is the time; only the test changes it."""
    now = [100.0]
    monkeypatch.setattr(tuner.time, "monotonic", lambda: now[0])
    return now


def test_nothing_begins_when_the_time_is_over(short, clock, monkeypatch):
    measure = tuner.measure

    def slow(result, budget, left, fastest):
        budgets.append((budget, left))
        measure(result, budget, left, fastest)
        clock[0] += 4.0

    budgets = []
    monkeypatch.setattr(tuner, "measure", slow)
    results = tuned(SMALL, ODD, seconds=10.0)
    assert [result.reason for result in results] == ["", "", "", "the 10 s were over"]
    assert budgets == [(2.5, 10.0), (2.0, 6.0), (1.0, 2.0)]  # equal parts of the remaining time
    assert "not measured: 1 of 4: the 10 s were over" in table(results)


def test_timing_that_does_not_fit_is_not_begun(short, monkeypatch):
    monkeypatch.setattr(timing, "milliseconds", lambda call, device, calls=1: 1e7)
    result = tuned(SMALL)[0]
    assert "did not fit into the budget" in result.reason and result.entry is None and not result.milliseconds


def test_configs_that_do_not_fit_are_listed(short, configs, clock, monkeypatch):
    def check(y, expected):
        clock[0] += 10.0

    monkeypatch.setattr(tuner, "check", check)
    monkeypatch.setattr(tuner, "candidates", lambda layer, kwargs: ["library", *CONV[:5]])
    result = tuned(SMALL, seconds=100.0)[0]  # 50 for each of the two forms, half of it until timing begins
    assert list(result.milliseconds) == ["library", *(f"triton {config.describe()}" for config in CONV[:2])]
    assert result.not_measured == [f"triton {config.describe()}" for config in CONV[2:5]]
    assert "not measured: 3 configs that did not fit into the time" in table([result])


# Configs: compiled in parallel, in the order of their predictions, until the next one cannot win
MANY = [tile._replace(splits=splits) for tile in CONV for splits in (1, 2)]


@pytest.fixture
def many(configs, monkeypatch):
    """28 configs, each predicted to be slower than the one before; took[config] is how long it takes."""
    took = {config: 1.0 + 0.1 * index for index, config in enumerate(MANY)}
    predicted = dict(took)
    monkeypatch.setattr(tuner, "candidates", lambda layer, kwargs: ["library", *MANY])
    monkeypatch.setattr(tuner, "predictions", lambda configs, kwargs: {config: predicted[config] for config in configs})
    monkeypatch.setattr(tuner, "at_once", lambda runs, device: lambda: took.get(runs[0].candidate, 4.0))
    return took


def test_the_truth_is_computed_once_a_job(short, many, monkeypatch):
    calls = []
    monkeypatch.setattr(tuner, "expected", lambda kwargs: calls.append(kwargs))
    result = tuned(SMALL)[0]
    assert len(calls) == 2 and len(result.milliseconds) > tuner.FIRST  # two forms


def test_the_rest_is_left_out_when_it_cannot_win(short, many):
    """Times are as predicted: no config predicted beyond 1 / DOUBT of the fastest can win."""
    result = tuned(SMALL)[0]
    measured = [config for config in MANY if f"triton {config.describe()}" in result.milliseconds]
    assert measured == MANY[: max(tuner.FIRST, sum(many[config] <= 1 / tuner.DOUBT for config in MANY))]
    assert result.unlikely == [f"triton {config.describe()}" for config in MANY[len(measured) :]]
    assert f"left out: {2 * len(result.unlikely)} configs that cannot win" in " ".join(table([result, result]).split())


def test_a_wrong_prediction_widens_the_search(short, many):
    """One of the first configs takes half of its predicted time: so may the next."""
    assert tuner.FIRST == 8  # the ninth is measured because of the sixth
    many[MANY[5]], many[MANY[8]] = 0.75, 0.5
    result = tuned(SMALL)[0]
    assert result.entry.config == MANY[8]
    assert len(result.milliseconds) - 1 < len(MANY) and result.unlikely


def test_another_dilation_of_a_shape_takes_the_fastest_configs_alone(short, many):
    """The library is measured again: it has other algorithms for a dilated convolution."""
    other = ConvLayer("other", SMALL.input, SMALL.weight, Spec((1, 1), (1, 1), (1, 1)), SMALL.residual)
    many[MANY[1]] = 0.5
    first, _, second, _ = tuned(SMALL, other)
    assert first.key != second.key and tuning.shape_of(first.key) == tuning.shape_of(second.key)
    assert list(second.milliseconds) == ["library", *(f"triton {config.describe()}" for config in MANY[:2])]
    assert second.entry.config == first.entry.config == MANY[1] and not second.unlikely


def test_first_calls_run_in_parallel_and_do_not_count_against_the_budget(clock):
    """Each waits for the others, and one fails."""
    gpu, result = torch.device("cuda", 0), tuner.Result(SMALL, Form(CPU, torch.float32, torch.contiguous_format))
    batches = list(tuner._groups(["library", *MANY, "native"], gpu))
    assert batches[:3] == [["library"], ["native"], MANY[:1]] and sum(batches[2:], []) == MANY
    assert {len(group) for group in batches[3:-1]} == {tuner.COMPILERS}
    assert {len(group) for group in tuner._groups(MANY, CPU)} == {1}
    together = threading.Barrier(3, timeout=30)

    def fails():
        together.wait()
        raise RuntimeError("no registers")

    def compiles(value):
        clock[0] += 4.0
        together.wait()
        assert not torch.is_grad_enabled()
        return value

    outcomes = tuner._first_calls(result, [lambda: compiles(1), fails, lambda: compiles(2)])
    assert [str(one) for one in outcomes] == ["1", "no registers", "2"] and result.compiling == 8.0


def test_compiling_does_not_count_against_the_budget(short, many, clock, monkeypatch):
    """Compiling a config takes 30 s, measuring it 1 s; the second run has 50 s until timing begins."""
    monkeypatch.setattr(tuner, "check", lambda y, expected: clock.__setitem__(0, clock[0] + 1.0))
    monkeypatch.setattr(tuner, "_first_calls", lambda result, runs: compile_of(result, runs))

    def compile_of(result, runs):
        clock[0] += 30.0
        result.compiling += 30.0
        return [None for _ in runs]

    result = tuned(SMALL, seconds=2000.0)[0]
    assert len(result.milliseconds) - 1 >= tuner.FIRST and not result.not_measured
    result = tuned(SMALL, seconds=200.0)[0]  # the remaining time is a limit too: half of it, until timing begins
    assert len(result.milliseconds) == 4 and len(result.not_measured) == len(MANY) - 3
