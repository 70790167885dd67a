"""`python -m atrous tune`: its report, the files it reads and writes, and its errors."""

import itertools
import json
import re
import sys

import pytest
import torch
from parameters import CPU_BACKENDS
from tuner_cases import CPU, SMALL, replace_native

from atrous import testing, tuning
from atrous.core.spec import Spec
from atrous.tools import cli
from atrous.tools.explain.conv_layers import ConvLayer
from atrous.tools.tune import measure as tuner
from atrous.tools.tune.candidates import Form
from atrous.tools.tune.report import describe, table
from atrous.tuning.device_id import device_name
from atrous.tuning.format import Entry

pytestmark = pytest.mark.usefixtures("tuning_folder")  # the user's folder of tables, which belongs to one test alone
needs_native = pytest.mark.skipif("native" not in CPU_BACKENDS, reason="libatrous.so is not built here")


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


def test_the_command_measures_reports_and_saves(short, run, shapes, tuning_folder, tmp_path):
    status, out, err = run(shapes, "--device", "cpu", "--seconds", 60, "--json", tmp_path / "tune.json")
    assert (status, err) == (0, "")
    *lines, written, undo = out.splitlines()
    assert max(map(len, lines[1:])) <= 60 and undo == "to undo: delete that file"
    assert "4 to measure, float32, NCHW" in lines[0] and "2x16x9x9>16 3x3 d2 +" in out
    measured = [line for line in lines if line.startswith("1x6x7x11>10 1x3 s2x1 d1x5 g2")]
    assert len(measured) == 2 and all(re.search(r" (library|native) +\d+\.\d\dx$", line) for line in measured)
    (path,) = tuning_folder.iterdir()
    assert written == f"written: {path}"
    saved = tuning.read(path)
    assert len(saved.entries) == 4 and saved.device == device_name(CPU) and saved.ceilings is None
    assert {(key.layout, key.frozen) for key in saved.entries} == {("NCHW", False), ("channels_last", True)}
    report = json.loads((tmp_path / "tune.json").read_text())
    assert report["table"] == str(path)
    assert [entry["layer"] for entry in report["entries"]] == ["shapes[0]"] * 2 + ["shapes[1]"] * 2
    assert all(set(CPU_BACKENDS) <= entry["milliseconds"].keys() for entry in report["entries"])


def test_measurements_are_saved_layer_by_layer(short, run, shapes, tuning_folder, tmp_path, monkeypatch):
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


@pytest.fixture
def lost(short, run, shapes, tmp_path, monkeypatch):
    """The JSON file of a run whose second layer of four lost the GPU."""
    make, calls = tuner.arguments, []

    def arguments(layer, form):
        calls.append(layer)
        if len(calls) > 1:
            raise RuntimeError("an illegal access")
        return make(layer, form)

    with monkeypatch.context() as patches:
        patches.setattr(tuner, "arguments", arguments)
        patches.setattr(testing, "gpu_lost", lambda: True)
        status, out, err = run(shapes, "--device", "cpu", "--json", tmp_path / "tune.json")
    assert status == testing.GPU_LOST and "written" not in out and len(calls) == 2
    assert err == "atrous tune: the GPU was lost: 2x16x9x9>16 3x3 d2 +: RuntimeError: an illegal access\n"
    return tmp_path / "tune.json"


def test_a_run_that_lost_the_gpu_is_continued(lost, run, shapes, tuning_folder):
    before = json.loads(lost.read_text())
    assert [bool(entry["milliseconds"]) for entry in before["entries"]] == [True, False]
    assert [entry["lost"] for entry in before["entries"]] == [False, True]
    status, out, err = run(shapes, "--device", "cpu", "--json", lost, "--continue")
    assert (status, err) == (0, "") and "2 to measure" in out
    after = json.loads(lost.read_text())
    assert after["entries"][:2] == before["entries"] and after["table"] == before["table"]
    assert [entry["layer"] for entry in after["entries"]] == ["shapes[0]"] * 2 + ["shapes[1]"] * 2
    assert [bool(entry["milliseconds"]) for entry in after["entries"]] == [True, False, True, True]
    (path,) = tuning_folder.iterdir()
    assert len(tuning.read(path).entries) == 3
    status, out, _ = run(shapes, "--device", "cpu", "--json", lost, "--continue")
    assert status == 0 and "0 to measure" in out and json.loads(lost.read_text()) == after


def test_a_run_without_a_file_is_continued_from_its_beginning(short, run, shapes, tmp_path):
    status, out, _ = run(shapes, "--device", "cpu", "--json", tmp_path / "new.json", "--continue")
    assert status == 0 and "4 to measure" in out
    assert len(json.loads((tmp_path / "new.json").read_text())["entries"]) == 4


@pytest.mark.parametrize("change, message", [
    ({"device": "another GPU"}, "got another GPU"),
    ({"dtype": "float64"}, "expected dtype float32, got float64"),
    ({"layout": "channels_last"}, "expected layout NCHW, got channels_last"),
    ({"versions": {"torch": "1.0"}}, "expected versions {"),
    ({"entries": [{"layer": 3}]}, "expected a file that `tune --json` wrote, got "),
    ({"entries": None}, "expected a file that `tune --json` wrote, got "),
])  # fmt: skip
def test_the_file_of_another_run_is_not_continued(lost, run, shapes, change, message):
    lost.write_text(text := json.dumps(json.loads(lost.read_text()) | change))
    status, out, err = run(shapes, "--device", "cpu", "--json", lost, "--continue")
    assert (status, out, err.count("\n")) == (2, "", 1) and message in err and "--continue: " in err
    assert lost.read_text() == text


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


def test_the_command_takes_a_model(short, run, tuning_folder, tmp_path):
    options = ("--device", "cpu", "--size", 32, "--batch", "1,2", "--act", "prelu", "--seconds", 1)
    status, out, err = run("resnet34", *options, "--json", tmp_path / "tune.json")
    assert err == "" and out.startswith("resnet34: 60 to measure")
    assert max(map(len, out.splitlines()[:-2])) <= 60
    entries = json.loads((tmp_path / "tune.json").read_text())["entries"]
    measured = [entry for entry in entries if entry["choice"]]
    assert len(entries) == 60 and all(entry["reason"] for entry in entries if entry not in measured)
    assert status == (0 if measured else 1)
    assert sum(len(tuning.read(path).entries) for path in tuning_folder.glob("*")) == len(measured)


def test_when_nothing_is_measured_nothing_is_written(run, shapes, tuning_folder):
    status, out, _ = run(shapes, "--device", "cpu", "--seconds", 1e-9)
    assert status == 1 and "nothing was measured" in out and "4 of 4: the 1e-09 s were over" in out
    assert "written" not in out and not tuning_folder.exists()


@needs_native
def test_a_wrong_result_ends_in_1_and_the_others_are_saved(short, run, shapes, tuning_folder, monkeypatch):
    replace_native(monkeypatch, lambda y: torch.zeros(1))
    status, out, _ = run(shapes, "--device", "cpu")
    assert status == 1 and "WRONG, left out: native" in out
    (path,) = tuning_folder.iterdir()
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
    (("resnet101",), "prelu_net14 or package.module:factory, got 'resnet101'"),
    (("resnet34", "--batch", "1,x"), "--batch: expected a positive integer, got 'x'"),
    (("resnet34", "--dtype", "int8"), "--dtype: invalid choice: 'int8'"),
    (("resnet34", "--layout", "NHWC"), "--layout: invalid choice: 'NHWC'"),
    (("resnet34", "--device", "tpu"), "--device: invalid choice: 'tpu'"),
    (("resnet34", "--seconds", "0"), "--seconds: expected a positive number, got 0"),
    (("resnet34", "--seconds", "nan"), "--seconds: expected a positive number, got nan"),
    (("resnet34", "--size", "0"), "--size: expected H or HxW, positive integers, got '0'"),
    (("torch.nn:Identity",), "expected a model with 2-D convolutions, found none"),
    (("resnet34", "--output", "no/table.txt"), "--output: expected a new file or a table, got 'no/table.txt'"),
    (("resnet34", "--output", "/proc/1/a/b.json"), "--output: expected a file that can be written"),
    (("shapes.json", "--size", "32"), "--size is for a model, not for shapes.json"),
    (("shapes.json", "--output-stride", "8"), "--output-stride is for a model, not for shapes.json"),
    (("shapes.json", "--continue"), "--continue: expected --json with the file of an interrupted run, got none"),
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
