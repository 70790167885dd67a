"""The command line: what python -m atrous prints, writes as JSON, and answers to a user's errors."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch

import atrous
from atrous.tools.demo import command as demo

COMMANDS = ("info", "demo", "explain", "tune", "audit", "certify", "export")


def error_line(answer):
    """The one line that a user's error ends in."""
    status, out, err = answer
    assert status == 2 and out == "" and err.endswith("\n") and err.count("\n") == 1, answer
    assert err.startswith("atrous")
    return err


def python(*arguments, folder, **environment):
    environment = {**os.environ, "COLUMNS": "60", **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, text=True, capture_output=True, timeout=300
    )


def test_help_lists_what_exists(run):
    status, out, err = run("--help")
    assert status == 0 and err == ""
    words = out.split()
    assert all(command in words for command in COMMANDS)
    for command in COMMANDS:
        status, out, err = run(command, "--help", columns=60)
        assert status == 0 and "--json FILE" in out and err == ""
        assert max(map(len, out.splitlines())) <= 60


def test_module_and_broken_pipe(tmp_path):
    """Run as a user does, outside of the sources; a reader that closes the pipe early, as head does, is no error."""
    done = python("-m", "atrous", "explain", "resnet34", "--size", "64", folder=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("resnet34, input 64x64x3, batch 1\n")
    assert max(map(len, done.stdout.splitlines())) <= 60
    leave = "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, 1); "
    leave += "from atrous.tools.cli import main; "
    done = python("-c", leave + "sys.exit(main(['info']))", folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")


def test_explain_prints_the_layers(run):
    status, out, err = run("explain", "resnet34")
    assert status == 0 and err == ""
    for text in ("input 224x224x3", "112x112x64", "layer4: 3 blocks", "7x7x512", "21,797,672 parameters", "3.664 GMAC"):
        assert text in out
    assert "36 of 36 convolutions" in out  # --backend auto


@pytest.mark.gate
@pytest.mark.parametrize("columns", [60, 100])
def test_explain_fits_the_terminal(run, columns):
    status, out, _ = run("explain", "resnet34", "--act", "prelu", "--output-stride", "8", columns=columns)
    assert status == 0 and max(map(len, out.splitlines())) <= columns
    assert ("conv bn prelu" in out) == (columns == 100)
    assert "21,805,288 parameters" in out and "28x28x512" in out


def test_explain_takes_the_options_of_resnet34(run, tmp_path):
    path = tmp_path / "layers.json"
    status, _, _ = run(
        "explain", "resnet34", "--act", "prelu", "--output-stride", "16", "--multi-grid", "1,2,4", "--first-dilation",
        "new", "--size", "64x96", "--batch", "2", "--channels", "1", "--backend", "library", "--json", path,
    )  # fmt: skip
    assert status == 0
    result = json.loads(path.read_text())
    assert (result["model"], result["input"]) == ("resnet34", [2, 1, 64, 96])
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert layers["conv1"]["output"] == [2, 64, 32, 48] and layers["conv1"]["parameters"] == 49 * 64
    dilations = [layers[f"layer4.{block}.conv{index}"]["dilation"][0] for block in range(3) for index in (1, 2)]
    assert dilations == [2, 2, 4, 4, 8, 8]
    assert layers["layer1.0.act1"]["kind"] == "PReLU" and layers["layer1.0.act1"]["backend"] is None
    assert {layer["backend"] for layer in result["layers"] if layer["kind"] == "Conv2d"} == {"library"}
    assert result["totals"]["parameters"] == sum(layer["parameters"] for layer in result["layers"])
    assert result["totals"]["macs"] == sum(layer["macs"] for layer in result["layers"])


@pytest.mark.gate
@pytest.mark.parametrize("name, options, parameters", [
    ("resnet18", ("--output-stride", "8"), "11,683,240"), ("resnet50", ("--multi-grid", "1,2,4"), "25,550,760"),
    ("drn_c_26", (), "21,125,016"), ("drn_d_22", (), "16,392,184"),
])  # fmt: skip
def test_explain_takes_the_models_of_the_package(run, name, options, parameters):
    """With images of one channel: the first convolution then has fewer weights."""
    status, out, _ = run("explain", name, "--size", "32", "--channels", "1", *options)
    assert status == 0 and f"{parameters} parameters" in out


def test_explain_takes_a_users_model(run, tmp_path, monkeypatch):
    (tmp_path / "a_users_models.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self): super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU())\n"
        "net = Net()\n"
        "def make(): return net\n"
        "def number(): return 3\n"
        "def broken(): raise KeyError('a file\\nis missing')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("Net", "net", "make"):
        status, out, _ = run("explain", f"a_users_models:{name}", "--size", "10")
        assert status == 0 and "8x8x8" in out and "224 parameters" in out
    assert "expected a_users_models:number to return a torch.nn.Module, got int" in error_line(
        run("explain", "a_users_models:number")
    )
    assert "KeyError" in error_line(run("explain", "a_users_models:broken"))
    assert "no attribute 'none'" in error_line(run("explain", "a_users_models:none"))
    assert "(1, 4, 224, 224)" in error_line(run("explain", "a_users_models:net", "--channels", "4"))
    assert "--act is for resnet18, resnet34, resnet50, not for a_users_models:net" in error_line(
        run("explain", "a_users_models:net", "--act", "relu")
    )
    monkeypatch.delitem(sys.modules, "a_users_models")


@pytest.mark.parametrize("arguments, message", [
    ((), "COMMAND"),
    (("audti",), "'audti'"),
    (("audit",), "RATES|MODEL"),
    (("explain",), "MODEL"),
    (("explain", "resnet101"), "prelu_net14 or package.module:factory, got 'resnet101'"),
    (("explain", "drn_c_26", "--act", "prelu"), "--act is for resnet18, resnet34, resnet50, not for drn_c_26"),
    (("explain", "no_such_module:make"), "No module named 'no_such_module'"),
    (("explain", "resnet34", "--multi-grid", "1,2"), "multi_grid: expected None or 3 positive ints"),
    (("explain", "resnet34", "--multi-grid", "1,x,4"), "--multi-grid: expected a positive integer, got 'x'"),
    (("explain", "resnet34", "--output-stride", "4"), "--output-stride: invalid choice: 4"),
    (("explain", "resnet34", "--act", "gelu"), "--act: invalid choice: 'gelu'"),
    (("explain", "resnet34", "--size", "0"), "--size: expected H or HxW, positive integers, got '0'"),
    (("explain", "resnet34", "--size", "8x"), "--size: expected H or HxW, positive integers, got '8x'"),
    (("explain", "resnet34", "--size", "-3"), "--size: expected H or HxW, positive integers, got '-3'"),
    (("explain", "resnet34", "--batch", "-1"), "--batch"),
    (("explain", "resnet34", "--backend", "cudnn"), "--backend: invalid choice: 'cudnn'"),
    (("explain", "resnet34", "--chip", "sm_70"), "--chip: invalid choice: 'sm_70'"),
    (("explain", "resnet34", "--dtype", "int8"), "--dtype: invalid choice: 'int8'"),
    (("explain", "resnet34", "--ceilings", "798"), "--ceilings: expected TFLOP/s,GB/s, two positive numbers"),
    (("explain", "resnet34", "--ceilings", "0,nan"), "--ceilings: expected TFLOP/s,GB/s, two positive numbers"),
    (("explain", "resnet34", "--backend", "triton", "--dtype", "float64", "--chip", "sm_80"), "backend triton expects"),
    (("info", "--json", "/no/a"), "--json: expected a file that can be written, got '/no/a': there is no folder '/no'"),
    (("demo", "--json", "."), "--json: expected a file that can be written, got '.', which is a folder"),
])  # fmt: skip
def test_errors_end_in_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(run(*arguments))


def test_a_named_backend_gives_its_reasons(run, monkeypatch):
    monkeypatch.setattr(atrous.ops, "library_error", "libatrous.so is not built")
    line = error_line(run("explain", "resnet18", "--backend", "native"))
    assert "backend='native' cannot run this call: native: libatrous.so is not built" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_explain_backend_triton_without_a_gpu(run, tmp_path):
    path = tmp_path / "layers.json"
    status, out, err = run("explain", "resnet34", "--backend", "triton", "--chip", "sm_80", "--json", path, columns=60)
    assert status == 0 and err == "" and max(map(len, out.splitlines())) <= 60
    assert out.startswith(
        "resnet34, input 224x224x3, batch 1\nfor bfloat16, channels_last, on sm_80 (not in this machine)"
    )
    result = json.loads(path.read_text())
    assert result["model"] == "resnet34" and result["target"]["gpu"] == {"chip": "sm_80", "multiprocessors": 108}
    assert len(result["convolutions"]) == 36 and all(choice["config"] for choice in result["convolutions"])
    assert result["totals"]["lower_bound_us"] is None
    options = ("--backend", "triton", "--dtype", "float16", "--ceilings", "250,1500", "--chip", "sm_80")
    status, out, _ = run("explain", "resnet18", *options)
    assert status == 0 and "for float16" in out and "for 250 TFLOP/s and 1500 GB/s, as given" in " ".join(out.split())
    assert "--chip: expected backend='triton'" in error_line(run("explain", "resnet34", "--chip", "sm_90"))


def test_a_full_disk_is_reported(run, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    path = tmp_path / "info.json"
    status, _, err = run("info", "--json", path)
    assert status == 2 and err == f"atrous info: --json: [Errno 28] No space left on device: '{path}'\n"


def test_info(run, tmp_path):
    status, out, err = run("info", "--json", tmp_path / "info.json", columns=60)
    assert status == 0 and err == ""
    assert torch.__version__ in out and max(map(len, out.splitlines())) <= 60
    result = json.loads((tmp_path / "info.json").read_text())
    assert result["versions"]["torch"] == torch.__version__
    assert set(result["backends"]) == set(atrous.backends.selection.backends())


def test_info_fails_if_a_required_backend_does_not_run(run, monkeypatch):
    assert run("info", "--require", "library")[0] == 0
    monkeypatch.setattr(atrous.backends.selection._BACKENDS["triton"], "available", lambda: ["no GPU"])
    status, out, err = run("info", "--require", "library,triton")
    assert status == 1 and "\nbackends\n" in out
    assert err == "atrous info: --require: triton does not run here: no GPU\n"
    names = ", ".join(atrous.backends.selection.backends())
    assert f"--require: expected some of {names}, got 'cuda'" in error_line(run("info", "--require", "cuda"))


def test_demo_receives_its_arguments(run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "main", lambda args: seen.append(args) or 7)
    status, _, _ = run("demo", "--json", tmp_path / "demo.json", "--plot", tmp_path / "demo.png")
    assert status == 7
    assert isinstance(seen[0], argparse.Namespace)
    assert (seen[0].json, seen[0].plot) == (tmp_path / "demo.json", tmp_path / "demo.png")
