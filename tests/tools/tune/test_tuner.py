"""The tuner: its candidates, and the ones it leaves out."""

import os
import subprocess
import sys

import pytest
import torch
from parameters import CPU_BACKENDS
from tuner_cases import CPU, ODD, SMALL, replace_native, tuned

from atrous import models, testing, tuning
from atrous.backends import selection
from atrous.core.spec import Spec
from atrous.tools import timing
from atrous.tools.explain.conv_layers import ConvLayer, conv_layers
from atrous.tools.tune import candidates
from atrous.tools.tune import measure as tuner
from atrous.tools.tune.candidates import Form, arguments, forms
from atrous.tools.tune.report import table
from atrous.triton_kernels.conv.configs import CONV
from atrous.tuning.device_id import device_name, versions
from atrous.tuning.format import Entry, Table

pytestmark = pytest.mark.usefixtures("tuning_folder")  # the user's folder of tables, which belongs to one test alone
needs_native = pytest.mark.skipif("native" not in CPU_BACKENDS, reason="libatrous.so is not built here")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_call_finds_what_was_measured_for_it(short, tuning_folder, dtype, layout):
    results = tuned(SMALL, ODD, dtype=dtype, layout=layout)
    assert [(result.layer, result.form.frozen) for result in results] == [
        (SMALL, False), (SMALL, True), (ODD, False), (ODD, True)
    ]  # fmt: skip
    for result in results:
        assert not (result.reason or result.wrong or result.failed or result.not_measured)
        assert set(CPU_BACKENDS) <= result.entry.milliseconds.keys() and min(result.milliseconds.values()) > 0
        entries = {result.key: result.entry}
        tuning.save(tuning_folder / "a.json", Table(device_name(CPU), versions(CPU), "2026-11-24", entries))
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


@needs_native
def test_a_wrong_candidate_is_left_out(short, monkeypatch):
    def wrong(y):
        y[-1, 0, 0, 0] += 1e-3  # one value, of the last image
        return y

    replace_native(monkeypatch, wrong)
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
    def fails(y):
        raise RuntimeError("out of memory\nlong explanation")

    replace_native(monkeypatch, fails)
    result = tuned(SMALL)[0]
    assert result.failed == {"native": "RuntimeError: out of memory"} and result.entry.backend == "library"


@needs_native
def test_a_candidate_that_loses_the_gpu_ends_the_run_and_is_named(short, monkeypatch):
    """After a sticky error nothing can be measured in this process: no other candidate, and no other layer."""

    def fails(y):
        raise RuntimeError("an illegal memory access\nlong explanation")

    replace_native(monkeypatch, fails)
    monkeypatch.setattr(testing, "gpu_lost", lambda: True)
    (result,) = tuned(SMALL, ODD)
    assert result.lost and result.reason == "GpuLost: native: RuntimeError: an illegal memory access"
    assert result.entry is None and not result.failed


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


# Backend triton
TRITON = """
import torch
from atrous.tools.tune import measure as tuner
from atrous.tools.explain.conv_layers import ConvLayer
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
