"""The tuner: its candidates, the ones it leaves out, its budget, and `python -m atrous tune`."""

import itertools
import json
import os
import re
import subprocess
import sys
import threading

import pytest
import torch

from atrous import models, tuning
from atrous.backends import native, selection
from atrous.core.spec import Spec
from atrous.tools import cli, timing
from atrous.tools.explain.conv_sites import ConvLayer, conv_layers
from atrous.tools.tune import candidates
from atrous.tools.tune import measure as tuner
from atrous.tools.tune.candidates import Form, arguments, forms
from atrous.tools.tune.report import describe, table
from atrous.triton_kernels.conv.configs import CONV
from atrous.tuning.device_id import device_name, versions
from atrous.tuning.format import Entry, Table

CPU = torch.device("cpu")
SMALL = ConvLayer("small", (2, 16, 9, 9), (16, 16, 3, 3), Spec((1, 1), (2, 2), (2, 2)), "before")
ODD = ConvLayer("odd", (1, 6, 7, 11), (10, 3, 1, 3), Spec((2, 1), (0, 5), (1, 5), 2))
BACKENDS = [name for name in ("library", "native") if not selection.available(name)]
needs_native = pytest.mark.skipif(BACKENDS == ["library"], reason="libatrous.so is not built here")


@pytest.fixture(autouse=True)
def cache(tuning_folder):
    """The user's folder of tables, which belongs to this test alone."""
    return tuning_folder


@pytest.fixture
def short(monkeypatch):
    """The fewest rounds: these tests are not about speed."""
    monkeypatch.setattr(tuner, "MAX_SECONDS", 0.0)


def tuned(*listed, seconds=60.0, dtype=torch.float32, layout=torch.contiguous_format):
    return list(tuner.tune(tuner.jobs(listed, forms(CPU, dtype, layout)), seconds))


# Candidates


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_call_finds_what_was_measured_for_it(short, cache, dtype, layout):
    results = tuned(SMALL, ODD, dtype=dtype, layout=layout)
    assert [(result.layer, result.form.frozen) for result in results] == [
        (SMALL, False), (SMALL, True), (ODD, False), (ODD, True)
    ]  # fmt: skip
    for result in results:
        assert not (result.reason or result.wrong or result.failed or result.not_measured)
        assert set(BACKENDS) <= result.entry.milliseconds.keys() and min(result.milliseconds.values()) > 0
        entries = {result.key: result.entry}
        tuning.save(cache / "a.json", Table(device_name(CPU), versions(CPU), "2026-11-24", entries))
    for result in results:
        kwargs = arguments(result.layer, result.form)
        call = kwargs["input"], kwargs["weight"], result.layer.spec
        more = {"residual": result.layer.residual != "none", "frozen": result.form.frozen}
        assert tuning.measured(*call, **more) == result.entry
        assert selection.choose("auto", *call, **more).name == result.entry.backend


def test_each_key_is_measured_once():
    model = models.resnet34()
    layers = [layer for batch in (3, 4, 5) for layer in conv_layers(model, (batch, 3, 64, 64))]
    jobs = tuner.jobs(layers, forms(CPU, torch.float32, torch.contiguous_format))
    assert len(layers) == 3 * 36
    assert len(jobs) == 2 * 2 * 15  # two buckets, two forms; eleven convolutions, four of them with a residual too
    assert {layer.input[0] for layer, _ in jobs} == {3, 5}


def test_the_forms_that_differ():
    nhwc, nchw = torch.channels_last, torch.contiguous_format
    on_cpu, on_gpu = forms(CPU, torch.float32, nchw), forms(torch.device("cuda", 0), torch.float16, nchw)
    assert on_cpu == [Form(CPU, torch.float32, nchw), Form(CPU, torch.float32, nhwc, frozen=True)]
    assert on_gpu == [Form(torch.device("cuda", 0), torch.float16, nchw)]


@pytest.mark.parametrize(
    "times, expected",
    [
        ({"library": 1.0, "native": 0.9}, Entry("native", None, {"library": 1.0, "native": 0.9})),
        ({"library": 1.0, "native": 0.99}, Entry("library", None, {"library": 1.0, "native": 0.99})),
        ({"native": 0.9}, Entry("native", None, {"native": 0.9})),
        (
            {"library": 1.0, CONV[0]: 0.8, CONV[1]: 0.5, CONV[2]: 0.6},
            Entry("triton", CONV[1], {"library": 1.0, "triton": 0.5}),
        ),
        ({"library": 1.0, CONV[0]: 2.0}, Entry("library", CONV[0], {"library": 1.0, "triton": 2.0})),
    ],
)
def test_the_fastest_is_chosen_and_the_library_where_it_is_as_fast(times, expected):
    assert tuner.entry(times) == expected


# Candidates that are left out


@needs_native
def test_a_wrong_candidate_is_left_out(short, monkeypatch):
    right = native.conv_epilogue

    def wrong(input, *others):
        y = right(input, *others)
        y[-1, 0, 0, 0] += 1e-3  # one value, of the last image
        return y

    monkeypatch.setattr(native, "conv_epilogue", wrong)
    many = ConvLayer("many", (9, *SMALL.input[1:]), SMALL.weight, SMALL.spec, SMALL.residual)
    result = tuned(many)[0]
    assert set(result.wrong) == {"native"} and "budget" in result.wrong["native"]
    assert result.entry.backend == "library" and "native" not in result.milliseconds
    text = " ".join(table([result]).split())
    assert "WRONG, left out: native for 9x16x9x9>16 3x3 d2 +: error 0.001 against fp64" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_wrong(value):
    kwargs = arguments(SMALL, Form(CPU, torch.float32, torch.contiguous_format))
    y = candidates.call("library", Form(CPU, torch.float32, torch.contiguous_format), kwargs)()
    expected = candidates.expected(kwargs)
    candidates.check(y, expected)
    with pytest.raises(candidates.WrongResult):
        candidates.check(y.fill_(value), expected)
    with pytest.raises(candidates.WrongResult):
        candidates.check(y[:, :, :-1], expected)


@needs_native
def test_a_candidate_that_fails_is_left_out(short, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("out of memory\nlong explanation")

    monkeypatch.setattr(native, "conv_epilogue", fails)
    result = tuned(SMALL)[0]
    assert result.failed == {"native": "RuntimeError: out of memory"} and result.entry.backend == "library"


def test_without_a_candidate_nothing_is_guessed(short, monkeypatch):
    monkeypatch.setattr(tuner, "candidates", lambda layer, kwargs: [])
    result = tuned(SMALL)[0]
    assert result.reason == "no candidate ran" and result.key is None and result.entry is None
    assert "nothing was measured" in table([result])


def test_a_layer_without_room_for_its_tensors_does_not_end_the_run(short, monkeypatch):
    def make(layer, form):
        if layer is SMALL:
            raise MemoryError("no room")
        return arguments(layer, form)

    monkeypatch.setattr(tuner, "arguments", make)
    results = tuned(SMALL, ODD)
    assert [result.reason for result in results] == ["MemoryError: no room"] * 2 + [""] * 2


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


# The budget


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


# Backend triton


TRITON = """
import torch
from atrous.tools.tune import measure as tuner
from atrous.tools.explain.conv_sites import ConvLayer
from atrous.core.spec import Spec
from atrous.tools.tune.candidates import forms
tuner.MAX_SECONDS = 0.0
layer = ConvLayer("a", (1, 8, 5, 5), (8, 1, 3, 3), Spec((1, 1), (2, 2), (2, 2), 8), "after")
for result in tuner.tune(tuner.jobs([layer], forms(torch.device("cpu"), torch.float16, torch.channels_last)), 300.0):
    assert not (result.wrong or result.failed or result.reason or result.not_measured), result
    assert result.entry.config is not None and "triton" in result.entry.milliseconds, result
    assert sum(name.startswith("triton ") for name in result.milliseconds) == 2, result
"""


def test_backend_triton_in_every_config_under_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", TRITON], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
def test_on_a_gpu():
    device = torch.device("cuda", torch.cuda.current_device())
    layer = ConvLayer("layer", (8, 64, 28, 28), (64, 64, 3, 3), Spec((1, 1), (1, 1)), "before")
    jobs = tuner.jobs([layer], forms(device, torch.bfloat16, torch.channels_last))
    (result,) = tuner.tune(jobs, 60.0)
    assert not (result.wrong or result.failed or result.reason), result
    assert {"library", "triton"} <= result.entry.milliseconds.keys() and result.entry.config is not None
    assert not torch.backends.cudnn.benchmark
    assert {"matmul_tflops", "copy_gb_s"} == timing.ceilings(device, 1024, 64).keys()


def test_ceilings_are_of_this_device():
    ceilings = timing.ceilings(CPU, side=64, mebi=1)
    assert ceilings.keys() == {"matmul_tflops", "copy_gb_s"} and min(ceilings.values()) > 0


# The command


@pytest.fixture
def run(capsys, monkeypatch):
    """run("shapes.json") -> exit status, stdout, stderr of python -m atrous tune."""
    monkeypatch.setenv("COLUMNS", "60")

    def call(*options):
        try:
            status = cli.main(["tune", *map(str, options)])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def shapes(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(
        '[{"input": [2, 16, 9, 9], "out_channels": 16, "kernel": 3, "padding": 2, "dilation": 2, "residual": "before"},'
        '{"input": [1, 6, 7, 11], "out_channels": 10, "kernel": [1, 3], "stride": [2, 1], "padding": [0, 5],'
        ' "dilation": [1, 5], "groups": 2}]'
    )
    return path


def test_the_command_measures_reports_and_saves(short, run, shapes, cache, tmp_path):
    status, out, err = run(shapes, "--device", "cpu", "--seconds", 60, "--json", tmp_path / "tune.json")
    assert (status, err) == (0, "")
    *lines, written, undo = out.splitlines()
    assert max(map(len, lines[1:])) <= 60 and undo == "to undo: delete that file"
    assert "4 to measure, float32, NCHW" in lines[0] and "2x16x9x9>16 3x3 d2 +" in out
    measured = [line for line in lines if line.startswith("1x6x7x11>10 1x3 s2x1 d1x5 g2")]
    assert len(measured) == 2 and all(re.search(r" (library|native) +\d+\.\d\dx$", line) for line in measured)
    (path,) = cache.iterdir()
    assert written == f"written: {path}"
    saved = tuning.read(path)
    assert len(saved.entries) == 4 and saved.device == device_name(CPU) and saved.ceilings is None
    assert {(key.layout, key.frozen) for key in saved.entries} == {("NCHW", False), ("channels_last", True)}
    report = json.loads((tmp_path / "tune.json").read_text())
    assert report["table"] == str(path)
    assert [entry["layer"] for entry in report["entries"]] == ["shapes[0]"] * 2 + ["shapes[1]"] * 2
    assert all(set(BACKENDS) <= entry["milliseconds"].keys() for entry in report["entries"])


def test_measurements_are_saved_layer_by_layer(short, run, shapes, cache, tmp_path, monkeypatch):
    """A run that is cut off leaves the times of all configs of the layers before."""
    path, tune = tmp_path / "tune.json", tuner.tune

    def cut_off(jobs, seconds):
        yield from itertools.islice(tune(jobs, seconds), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(tuner, "tune", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(shapes, "--device", "cpu", "--seconds", 60, "--commit", "abc", "--json", path)
    report = json.loads(path.read_text())
    assert len(report["entries"]) == 2 and all(entry["milliseconds"] for entry in report["entries"])
    assert report["commit"] == "abc" and [path.name for path in tmp_path.glob("tune*")] == ["tune.json"]


def test_another_run_adds_to_the_table(short, run, shapes, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for options in (("--dtype", "float32"), ("--dtype", "float64", "--layout", "channels_last", "--batch", "1,2,3")):
        status, _, _ = run(shapes, "--device", "cpu", "--output", folder, "--commit", "abc", *options)
        assert status == 0
    (path,) = folder.iterdir()
    saved = tuning.read(path)
    assert saved.commit == "abc" and len(saved.entries) == 4 + 3 * 4
    assert {key.batch for key in saved.entries if key.dtype == "float64"} == {1, 2, 4}


def test_the_command_takes_a_model(short, run, cache, tmp_path):
    options = ("--device", "cpu", "--size", 32, "--batch", "1,2", "--act", "prelu", "--seconds", 1)
    status, out, err = run("resnet34", *options, "--json", tmp_path / "tune.json")
    assert err == "" and out.startswith("resnet34: 60 to measure")
    assert max(map(len, out.splitlines()[:-2])) <= 60
    entries = json.loads((tmp_path / "tune.json").read_text())["entries"]
    measured = [entry for entry in entries if entry["choice"]]
    assert len(entries) == 60 and all(entry["reason"] for entry in entries if entry not in measured)
    assert status == (0 if measured else 1)
    assert sum(len(tuning.read(path).entries) for path in cache.glob("*")) == len(measured)


def test_when_nothing_is_measured_nothing_is_written(run, shapes, cache):
    status, out, _ = run(shapes, "--device", "cpu", "--seconds", 1e-9)
    assert status == 1 and "nothing was measured" in out and "4 of 4: the 1e-09 s were over" in out
    assert "written" not in out and not cache.exists()


@needs_native
def test_a_wrong_result_ends_in_1_and_the_others_are_saved(short, run, shapes, cache, monkeypatch):
    monkeypatch.setattr(native, "conv_epilogue", lambda input, *others: torch.zeros(1))
    status, out, _ = run(shapes, "--device", "cpu")
    assert status == 1 and "WRONG, left out: native" in out
    (path,) = cache.iterdir()
    assert {entry.backend for key, entry in tuning.read(path).entries.items() if not key.frozen} == {"library"}


def test_the_bar_is_optional(short, run, shapes, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run(shapes, "--device", "cpu")[0] == 0


SHAPE = {"input": [1, 4, 8, 8], "out_channels": 4, "kernel": 3}


@pytest.mark.parametrize("content, message", [
    (None, "No such file"),
    ("[", "expected JSON"),
    ("{}", "shapes: expected a list of convolutions, got {}"),
    ("[]", "shapes: expected a list of convolutions, got []"),
    ("[3]", "shapes[0]: expected an object, got 3"),
    ([SHAPE, {**SHAPE, "input": [1, 4, 8]}], "shapes[1].input: expected 4 integers >= 1, got [1, 4, 8]"),
    ([{**SHAPE, "input": [1, 4, 8, 2.0]}], "shapes[0].input"),
    ([{**SHAPE, "colour": "red"}], "'unknown': ['colour']"),
    ([{"input": [1, 4, 8, 8]}], "'missing': ['out_channels', 'kernel']"),
    ([{**SHAPE, "padding": "same"}], "padding: expected an integer >= 0, or two of them, got 'same'"),
    ([{**SHAPE, "kernel": [3, 3, 3]}], "shapes[0].kernel"),
    ([{**SHAPE, "stride": 0}], "shapes[0].stride"),
    ([{**SHAPE, "residual": True}], "shapes[0].residual: expected one of none, before, after, got True"),
    ([{**SHAPE, "groups": 3}], "shapes[0].groups: expected a divisor of the 4 input channels, got 3"),
    ([{**SHAPE, "groups": 4, "out_channels": 6}], "shapes[0]: weight: expected"),
    ([{**SHAPE, "dilation": 8}], "shapes[0]: input: expected H + 2 * padding"),
])  # fmt: skip
def test_invalid_shapes_end_in_one_line(run, tmp_path, content, message):
    path = tmp_path / "shapes.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    status, out, err = run(path)
    assert (status, out, err.count("\n")) == (2, "", 1) and message in err and err.startswith("atrous tune: ")


@pytest.mark.parametrize("options, message", [
    (("resnet50",), "expected resnet34 or package.module:factory"),
    (("resnet34", "--batch", "1,x"), "--batch: expected a positive integer, got 'x'"),
    (("resnet34", "--dtype", "int8"), "--dtype: invalid choice: 'int8'"),
    (("resnet34", "--layout", "NHWC"), "--layout: invalid choice: 'NHWC'"),
    (("resnet34", "--device", "tpu"), "--device: invalid choice: 'tpu'"),
    (("resnet34", "--seconds", "0"), "--seconds: expected a positive number, got 0"),
    (("resnet34", "--seconds", "nan"), "--seconds: expected a positive number, got nan"),
    (("resnet34", "--size", "0"), "--size: expected a positive integer"),
    (("torch.nn:Identity",), "expected a model with 2-D convolutions, found none"),
    (("resnet34", "--output", "no/table.txt"), "--output: expected a new file or a table, got 'no/table.txt'"),
    (("resnet34", "--output", "/proc/1/a/b.json"), "--output: expected a file that can be written"),
    (("shapes.json", "--size", "32"), "--size is for a model, not for shapes.json"),
    (("shapes.json", "--output-stride", "8"), "--output-stride is for a model, not for shapes.json"),
    ((), "MODEL"),
])  # fmt: skip
def test_errors_end_in_one_line(run, shapes, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "table.txt").write_text("my notes")
    status, out, err = run(*options)
    assert (status, out, err.count("\n")) == (2, "", 1) and message in err
    assert (tmp_path / "no" / "table.txt").read_text() == "my notes"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_absent_gpu(run):
    assert "--device: expected a GPU that torch can use for cuda, found none" in run("resnet34", "--device", "cuda")[2]


def test_a_full_disk_is_reported(short, run, shapes, monkeypatch):
    def refuse(path, table):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuning, "save", refuse)
    status, _, err = run(shapes, "--device", "cpu")
    assert status == 2 and err.count("\n") == 1 and "No space left on device" in err


@pytest.mark.parametrize("backends", [("library", "native"), ("library", "triton"), ("library", "native", "triton")])
def test_the_table_fits_60_columns(backends):
    long = ConvLayer("long", (256, 1024, 128, 128), (1024, 64, 13, 13), Spec((2, 1), (0, 5), (11, 12), 16), "after")
    form = Form(CPU, torch.float32, torch.contiguous_format)
    times = dict(zip(backends, (12345.678, 0.00123456, 1.5)))
    results = [tuner.Result(layer, form, None, Entry(backends[1], None, times), {}) for layer in (SMALL, long)]
    text = table([*results, tuner.Result(long, form, reason="RuntimeError: " + "very long " * 20)])
    assert max(map(len, text.splitlines())) <= 60 and ".." in text and "0.00123" in text and "12346" in text
    assert describe(long) == "256x1024x128x128>1024 13x13 s2x1 d11x12 g16 +"
