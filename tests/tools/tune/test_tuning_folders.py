"""A tuning run that is killed, and folders of tables that are missing, that are none, or that cannot be written."""

import json
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from file_limit import killed_in
from torch import nn
from tuning_cases import CPU, KEY, LIBRARY, NATIVE, table

from atrous import tuning
from atrous.nn import FrozenConv2d
from atrous.tools.tune import measure as tuner

pytestmark = pytest.mark.filterwarnings("error")  # a warning that no test expects

SHAPES = [{"input": [1, 4, 8, size], "out_channels": 4, "kernel": 3} for size in (8, 9)]
# It kills itself as it is about to write the table for the third time, which is then half a file.
KILLED = """
import os, signal, sys
from atrous.tools import cli
from atrous.tools.tune import measure
measure.MAX_SECONDS, fsync, tables = 0.0, os.fsync, []
def killed(number):
    tables.extend(name for name in os.listdir(sys.argv[1]) if name.startswith("table.json.") and name.endswith(".part"))
    if len(tables) == 3:
        os.ftruncate(number, 100)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(number)
os.fsync = killed
cli.main(["tune", *sys.argv[2:]])
"""


@pytest.mark.parametrize("step, expected", [("fsync", LIBRARY), ("replace", LIBRARY)])
def test_a_kill_while_a_table_is_written(tuning_folder, step, expected):
    path, other = tuning_folder / "a.json", KEY._replace(batch=8)
    tuning.save(path, table({KEY: LIBRARY}))
    killed_in(step, lambda: tuning.save(path, table({KEY: NATIVE, other: NATIVE})))
    tuning.reload()
    assert tuning.read(path) == table({KEY: expected}) and tuning.lookup(CPU, KEY) == expected
    tuning.save(path, table({other: NATIVE}))
    assert tuning.lookup(CPU, KEY) == expected and tuning.lookup(CPU, other) == NATIVE


def test_a_killed_run_is_continued(short, run, tuning_folder, tmp_path):
    shapes, tables = tmp_path / "shapes.json", tuning_folder
    shapes.write_text(json.dumps(SHAPES))
    tables.mkdir(parents=True)
    options = [shapes, "--device", "cpu", "--output", tables / "table.json", "--json", tmp_path / "tune.json"]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, (tables, *options))], capture_output=True, text=True, timeout=300
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    first = tuning.read(tables / "table.json").entries
    report = json.loads((tmp_path / "tune.json").read_text())
    assert len(first) == len(report["entries"]) == 2 and len(list(tables.glob("*.part"))) == 1
    assert all(tuning.lookup(CPU, key) == entry for key, entry in first.items())
    status, _, err = run("tune", *options)
    assert (status, err) == (0, "")
    assert len(tuning.read(tables / "table.json").entries) == 4 > len(first)


def under_a_file(folder, monkeypatch):
    (folder / "file").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file" / "cache"))


def is_a_file(folder, monkeypatch):
    (folder / "cache").mkdir()
    (folder / "cache" / "atrous").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def of_the_kernel(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self/cache")


def home_under_a_file(folder, monkeypatch):
    (folder / "file").write_text("a file")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(folder / "file"))


def no_home(folder, monkeypatch):
    """As for a user without an entry in the system's list of users."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])


@pytest.mark.parametrize("prepare", [under_a_file, is_a_file, of_the_kernel, home_under_a_file, no_home])
def test_without_a_folder_that_can_be_written(run, tuning_folder, tmp_path, monkeypatch, prepare):
    """Calls run without tables and without a warning; tune says so before it measures."""
    prepare(tmp_path, monkeypatch)
    tuning.reload()
    conv, x = nn.Conv2d(16, 32, 3), torch.randn(1, 16, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(FrozenConv2d(conv)(x), conv(x), rtol=1e-4, atol=1e-5)
    assert tuning.lookup(CPU, KEY) is None
    monkeypatch.setattr(tuner, "tune", lambda *arguments: pytest.fail("it measures"))
    (shapes := tmp_path / "shapes.json").write_text(json.dumps(SHAPES))
    status, out, err = run("tune", shapes, "--device", "cpu")
    assert (status, out) == (2, "") and err.startswith("atrous tune: --output: expected a ") and err.count("\n") == 1


def test_a_default_table_that_is_corrupted_is_named_and_kept(run, tuning_folder, tmp_path, monkeypatch):
    tuning_folder.mkdir(parents=True)
    path = tuning_folder / tuning.device_id.file_name(CPU)
    path.write_text('{"format": 1, "dev')
    monkeypatch.setattr(tuner, "tune", lambda *arguments: pytest.fail("it measures"))
    (shapes := Path(tmp_path, "shapes.json")).write_text(json.dumps(SHAPES))
    status, _, err = run("tune", shapes, "--device", "cpu")
    assert status == 2 and f"expected a new file or a table, got '{path}': expected JSON" in err
    assert path.read_text() == '{"format": 1, "dev'
