"""Files of tuning tables: their format, the files that are rejected, and atomic writes."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tuning_cases import CPU, KEY, LIBRARY, NATIVE, SPEC, TRITON, call, make_loop, table

from atrous import tuning
from atrous.triton_kernels.conv.configs import CONV, DEPTHWISE
from atrous.tuning.device_id import versions
from atrous.tuning.format import MAX_BYTES, dump, parse

pytestmark = pytest.mark.filterwarnings("error")  # a warning that no test expects


def test_round_trip():
    entries = {KEY: LIBRARY, KEY._replace(batch=8): NATIVE, KEY._replace(groups=16, tf32=True): TRITON}
    ceilings = {"matmul_tflops": 612.5, "copy_gb_s": 2800.0}
    original = table(entries, ceilings=ceilings, commit="ab" * 20)
    assert parse(dump(original).encode()) == original
    lines = dump(original).splitlines()
    assert len(lines) == 2 + len(entries) and all(json.loads(line.rstrip(",")) for line in lines[1:-1])
    assert dump(original) == dump(original._replace(entries=dict(reversed(entries.items()))))


@pytest.mark.parametrize("config", [CONV[-1], DEPTHWISE["nhwc"][0], DEPTHWISE["nchw"][1]._replace(waves=2)])
def test_every_listed_config_is_taken(config):
    assert parse(dump(table({KEY: TRITON._replace(config=config)})).encode()).entries[KEY].config == config


def document(entry=(), without=None, **changes):
    """The JSON of a valid table, with changes to its fields and to those of its one entry."""
    value = json.loads(dump(table({KEY: TRITON})))
    value["entries"][0].update(entry)
    value.update(changes)
    value.pop(without, None)
    return json.dumps(value).encode()


CONFIG = list(TRITON.config)
BROKEN = {
    "nothing": (b"", "expected JSON, got Expecting value"),
    "not JSON": (b"import os; os.abort()", "expected JSON"),
    "a pickle": (b"\x80\x04\x95\x0c\x00", "expected UTF-8"),
    "UTF-16": ('{"format": 1}'.encode("utf-16"), "expected UTF-8"),
    "cut off": (document()[:-20], "expected JSON"),
    "huge": (b" " * (MAX_BYTES + 1), "expected at most 16777216 bytes, got more"),
    "deep": (b"[" * 200_000, "expected a few levels of nesting"),
    "deep objects": (b'{"a":' * 200_000, "expected a few levels of nesting"),
    "a list": (b"[]", r"table: expected an object, got \[\]"),
    "no format": (document(without="format"), "table: expected the fields format, .*'missing': \\['format'\\]"),
    "another format": (document(format=2), "table.format: expected 1, got 2"),
    "format true": (document(format=True), "table.format: expected 1, got True"),
    "an unknown field": (document(code="1"), "'unknown': \\['code'\\]"),
    "a device that is none": (document(device=3), "table.device: expected a string, got 3"),
    "versions": (document(versions={"torch": 2}), "table.versions: expected an object whose values are each a string"),
    "ceilings": (document(ceilings={"copy_gb_s": -1}), "table.ceilings: expected .* a number above 0"),
    "no entries": (document(entries=None), "table.entries: expected a list, got None"),
    "an entry that is none": (document(entries=[3]), r"entries\[0\]: expected an object, got 3"),
    "a name twice": (document().replace(b'"device"', b'"format": 1, "device"'), "an object: expected each name once"),
    "a key twice": (document(entries=json.loads(document())["entries"] * 2), r"entries\[1\]: expected a key that no"),
    "not a number": (document().replace(b"0.125", b"NaN"), "expected a finite one, got 'NaN'"),
    "infinity": (document().replace(b"0.125", b"-Infinity"), "expected a finite one, got '-Infinity'"),
    "overflow": (document().replace(b"0.125", b"1e999"), r"entries\[0\].milliseconds: expected .*, got .*inf"),
    "a long number": (document().replace(b"0.125", b"9" * 400), r"entries\[0\].milliseconds"),
    "a longer number": (document().replace(b"0.125", b"9" * 10**5), "integer string conversion"),
    "negative": (document({"milliseconds": {"library": -1.0}}), r"entries\[0\].milliseconds"),
    "zero": (document({"milliseconds": {"library": 0}}), r"entries\[0\].milliseconds"),
    "true": (document({"milliseconds": {"library": True}}), r"entries\[0\].milliseconds"),
    "a backend that is no name": (document({"backend": "../os"}), r"entries\[0\].backend: expected a name, got '../os"),
    "a backend as a list": (document({"backend": ["library"]}), r"entries\[0\].backend"),
    "a time of no name": (document({"milliseconds": {"triton": 1, "o s": 1}}), r"entries\[0\].milliseconds"),
    "no time of the choice": (document({"milliseconds": {"library": 1}}), "milliseconds: expected the time of triton"),
    "no config": (document({"config": None}), r"entries\[0\].config: expected a config if triton has a time"),
    "a config for the library": (document({"backend": "library", "milliseconds": {"library": 1}}), r"\[0\].config"),
    "an unlisted tile": (document({"config": [32, *CONFIG[1:]]}), r"entries\[0\].config: expected a config"),
    "unlisted splits": (document({"config": [*CONFIG[:5], 3, 0, True]}), r"entries\[0\].config"),
    "unlisted waves": (document({"config": [*CONFIG[:5], 1, 9, True]}), r"entries\[0\].config"),
    "a config of floats": (document({"config": [float(CONFIG[0]), *CONFIG[1:]]}), r"entries\[0\].config"),
    "a config of 1 for true": (document({"config": [*CONFIG[:7], 1]}), r"entries\[0\].config"),
    "a short config": (document({"config": CONFIG[:3]}), r"entries\[0\].config"),
    "a config of texts": (document({"config": "64x64"}), r"entries\[0\].config"),
    "no channels": (document({"in_channels": 0}), r"entries\[0\].in_channels: expected an integer >= 1"),
    "true channels": (document({"in_channels": True}), r"entries\[0\].in_channels"),
    "many channels": (document({"out_channels": 2**31}), r"entries\[0\].out_channels"),
    "a size of one": (document({"size": [9]}), r"entries\[0\].size: expected 2 integers >= 1, got \[9\]"),
    "a size of texts": (document({"size": ["9", "9"]}), r"entries\[0\].size"),
    "negative padding": (document({"padding": [-1, 0]}), r"entries\[0\].padding: expected 2 integers >= 0"),
    "no stride": (document({"stride": [0, 1]}), r"entries\[0\].stride"),
    "a batch between": (document({"batch": 3}), r"entries\[0\].batch: expected a power of two, got 3"),
    "a dtype": (document({"dtype": "int8"}), r"entries\[0\].dtype"),
    "a layout": (document({"layout": "NHWC"}), r"entries\[0\].layout: expected one of NCHW, channels_last, got 'NHWC'"),
    "a flag": (document({"frozen": "no"}), r"entries\[0\].frozen: expected true or false, got 'no'"),
    "a long text": (document({"dtype": "x" * 10**6}), r"entries\[0\].dtype: expected one of .{1,200}$"),
}  # fmt: skip


@pytest.mark.parametrize("content, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_reported_once_and_ignored(tuning_folder, content, message):
    tuning.save(tuning_folder / "good.json", table({KEY: NATIVE}))
    broken = tuning_folder / "broken.json"
    broken.write_bytes(content)
    tuning.reload()
    with pytest.warns(UserWarning, match=message) as warned:
        assert tuning.lookup(CPU, KEY) == NATIVE
    assert len(warned) == 1 and str(broken) in str(warned[0].message) and len(str(warned[0].message)) < 1200
    assert tuning.lookup(CPU, KEY) == NATIVE and tuning.lookup(torch.device("cpu", 0), KEY) == NATIVE


def make_unreadable(path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path.touch(mode=0)


@pytest.mark.parametrize(
    "make, message",
    [
        (Path.mkdir, "expected a regular file"),
        (os.mkfifo, "expected a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "expected a regular file"),
        (make_loop, "symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (make_unreadable, "Permission denied"),
    ],
    ids=["folder", "fifo", "device", "loop", "dangling", "unreadable"],
)
def test_a_path_that_is_no_file_is_reported_and_ignored(tuning_folder, make, message):
    tuning_folder.mkdir(parents=True)
    make(tuning_folder / "odd.json")
    with pytest.warns(UserWarning, match=f"odd.json is not used: .*{message}"):
        assert tuning.lookup(CPU, KEY) is None
    assert tuning.lookup(CPU, KEY) is None


def test_a_path_that_is_no_folder_is_reported_only_if_it_cannot_be_listed(tuning_folder, monkeypatch):
    assert tuning.lookup(CPU, KEY) is None  # absent
    tuning_folder.parent.mkdir(parents=True)
    tuning_folder.write_text("a file")
    tuning.reload()
    assert tuning.lookup(CPU, KEY) is None
    tuning_folder.unlink()
    make_loop(tuning_folder)
    tuning.reload()
    with pytest.warns(UserWarning, match="the tuning tables of .* are not used"):
        assert tuning.lookup(CPU, KEY) is None


def test_other_files_of_the_folder_are_left_alone(tuning_folder):
    tuning_folder.mkdir(parents=True)
    for name in ("notes.txt", "table.json.123.part", "json"):
        (tuning_folder / name).write_text("no table")
    assert tuning.lookup(CPU, KEY) is None


# Writing


def test_save_merges_what_is_of_the_same_device_and_versions(tuning_folder):
    path, other = tuning_folder / "a.json", KEY._replace(batch=8)
    tuning.save(path, table({KEY: LIBRARY}))
    tuning.save(path, table({other: NATIVE}, date="2026-12-01"))
    assert tuning.read(path) == table({KEY: LIBRARY, other: NATIVE}, date="2026-12-01")
    tuning.save(path, table({KEY: NATIVE}))
    assert tuning.read(path).entries == {KEY: NATIVE, other: NATIVE}
    renewed = table({KEY: LIBRARY}, versions={**versions(CPU), "torch": "9.0"})
    tuning.save(path, renewed)
    assert tuning.read(path) == renewed
    assert [file.name for file in tuning_folder.iterdir()] == ["a.json"]


def test_runs_that_save_at_once_keep_each_others_entries(tuning_folder):
    path = tuning_folder / "a.json"
    keys = [KEY._replace(batch=1 << power) for power in range(10)]
    with ThreadPoolExecutor(len(keys)) as pool:
        list(pool.map(lambda key: tuning.save(path, table({key: LIBRARY})), keys))
    assert tuning.read(path).entries == dict.fromkeys(keys, LIBRARY)


def test_a_choice_counts_as_soon_as_it_is_saved(tuning_folder):
    assert tuning.measured(*call(), SPEC, False) is None
    tuning.save(tuning_folder / "a.json", table({KEY: NATIVE}))
    assert tuning.measured(*call(), SPEC, False) == NATIVE
    (tuning_folder / "a.json").unlink()
    tuning.reload()
    assert tuning.measured(*call(), SPEC, False) is None


@pytest.mark.parametrize("step", ["replace", "write"])
def test_a_write_that_fails_leaves_what_was_there(tuning_folder, monkeypatch, step):
    path = tuning_folder / "a.json"
    tuning.save(path, table({KEY: LIBRARY}))
    before = path.read_bytes()

    def refuse(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace" if step == "replace" else "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        tuning.save(path, table({KEY: NATIVE}))
    assert path.read_bytes() == before and [file.name for file in tuning_folder.iterdir()] == ["a.json"]


def test_a_file_that_is_no_table_is_not_overwritten(tuning_folder):
    tuning_folder.mkdir(parents=True)
    notes, loop = tuning_folder / "notes.json", tuning_folder / "loop.json"
    notes.write_text('{"my": "notes"}')
    make_loop(loop)
    with pytest.raises(ValueError, match="table: expected the fields"):
        tuning.save(notes, table({KEY: NATIVE}))
    with pytest.raises(OSError):
        tuning.save(loop, table({KEY: NATIVE}))
    assert notes.read_text() == '{"my": "notes"}' and loop.is_symlink()
