"""Every command that writes a file, on a full disk: the old file stays, and the answer is one line."""

import sys
from pathlib import Path

import pytest
import torch
from file_limit import contents, file_limit
from test_cli import error_line, python
from torch import nn
from tuning_cases import KEY, LIBRARY, table

import atrous
from atrous import tuning
from atrous.tools.certify import errors
from atrous.tools.demo import command as demo
from atrous.tools.export import export
from atrous.tuning.format import dump

MODEL = "test_full_disk:Small"
SHAPES = '[{"input": [1, 4, 8, 8], "out_channels": 4, "kernel": 3}]'
TABLE = dump(table({KEY: LIBRARY})).encode()
COMMANDS = [
    ("info --json info.json", b"{}"),
    (f"explain {MODEL} --size 8 --json layers.json", b"{}"),
    (f"explain {MODEL} --size 8 --train --json layers.json", b"{}"),
    ("explain --slopes slopes.pt --json slopes.json", b"{}"),
    ("explain --slopes slopes.pt --plot slopes.png", b"an image"),
    ("audit 1,2 --json audit.json", b"{}"),
    ("audit 1,2 --plot audit.png", b"an image"),
    ("audit 1,2 --html audit.html", b"a page"),
    ("certify --json errors.json", b"{}"),
    ("demo --json demo.json", b"{}"),
    ("demo --plot demo.png", b"an image"),
    ("tune shapes.json --device cpu --output table.json --json tune.json", b"{}"),
    ("tune shapes.json --device cpu --output table.json", TABLE),
    (f"export {MODEL} --size 8 --output net.pt2 --json net.json", b"{}"),
    (f"export {MODEL} --size 8 --output net.pt2", b"a package"),
]


class Small(nn.Sequential):
    """A model to explain and to export."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4))


@pytest.fixture
def folder(short, tmp_path, monkeypatch):
    """The current folder, with the commands' inputs. What takes long in them is left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "test_full_disk", sys.modules[__name__])
    Path("shapes.json").write_text(SHAPES)
    torch.save({"act.weight": torch.rand(8)}, "slopes.pt")
    for name, value in (("subject", (None, "none")), ("photographs", []), ("shipped", []), ("Run", None)):
        monkeypatch.setattr(demo, name, lambda *arguments, value=value: value)
    monkeypatch.setattr(demo, "_show", lambda run: None)
    monkeypatch.setattr(demo.plot, "draw", lambda result: bytes(1000))
    monkeypatch.setattr(errors, "measurements", lambda *arguments: iter(()))
    return tmp_path


def write_nothing_else(monkeypatch, option):
    """Lets a command reach the file of `option`: what it writes before is too large for the limit as well."""
    if option == "--json":
        monkeypatch.setattr(tuning, "save", lambda path, table: None)
        monkeypatch.setattr(export, "write_package", lambda program, path, options: path.write_bytes(b""))
    else:
        monkeypatch.setattr(export, "write_package", lambda program, path, options: path.write_bytes(bytes(1000)))
    monkeypatch.setattr(export, "_difference", lambda *arguments: 0.0)


NEW = [(command, None) for command, _ in COMMANDS if command.startswith(("audit 1,2 --plot", "tune"))]
CASES = [pytest.param(command, old, id=command + " (new)" * (old is None)) for command, old in COMMANDS + NEW]


@pytest.mark.parametrize("command, old", CASES)
def test_a_command_on_a_full_disk(run, folder, monkeypatch, command, old):
    """old: an earlier result in the file."""
    *words, option, name = command.split()
    if words[0] == "export" and atrous.backends.selection.available("native"):
        pytest.skip("libatrous.so is not built")
    write_nothing_else(monkeypatch, option)
    if old is not None:
        (folder / name).write_bytes(old)
    before = contents(folder)
    with file_limit(10):
        status, _, err = run(*words, option, name)
    assert status == 2 and err.startswith(f"atrous {words[0]}: ") and err.count("\n") == 1, err
    assert "[Errno 27] File too large" in err and (option in err or words[0] == "export"), err
    complete = {"net.pt2"} if option == "--json" else set()  # a package that was written before
    assert {name: data for name, data in contents(folder).items() if name not in complete} == before


@pytest.mark.gate
@pytest.mark.skipif(bool(atrous.backends.selection.available("native")), reason="libatrous.so is not built")
@pytest.mark.parametrize("limit", [10, 20_000])
def test_a_compiler_on_a_full_disk(run, folder, limit):
    """Inductor and its C++ compiler meet the limit first."""
    Path("net.pt2").write_bytes(b"a package")
    before = contents(folder)
    with file_limit(limit):
        line = error_line_after_output(run("export", MODEL, "--size", "8", "--output", "net.pt2"))
    assert line.startswith(f"atrous export: {MODEL} with an input of shape (2, 3, 8, 8): ")
    assert contents(folder) == before


def error_line_after_output(answer):
    status, _, err = answer
    return error_line((status, "", err))


def test_a_standard_output_that_is_full(tmp_path):
    call = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); from atrous.tools.cli import main; "
    done = python("-c", call + "sys.exit(main(['audit', '1,2']))", folder=tmp_path)
    assert (done.returncode, done.stderr) == (2, "atrous audit: [Errno 28] No space left on device\n")
