"""Tuning tables: their folders, their format, the files that are rejected, and atomic writes."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import atrous
from atrous import tuning
from atrous.core.spec import Spec
from atrous.triton_kernels.conv.configs import CONV, DEPTHWISE
from atrous.tuning.device_id import device_name, file_name, versions
from atrous.tuning.format import MAX_BYTES, Entry, Key, Table, dump, parse

CPU = torch.device("cpu")
SPEC = Spec((1, 1), (2, 2), (2, 2))
KEY = Key(16, 32, (9, 7), (3, 3), (1, 1), (2, 2), (2, 2), 1, 4, "float32", "NCHW", False, False, False, False)
LIBRARY = Entry("library", None, {"library": 0.25, "native": 0.5})
NATIVE = Entry("native", None, {"library": 0.5, "native": 0.25})
TRITON = Entry("triton", CONV[3]._replace(splits=4), {"library": 0.5, "triton": 0.125})


@pytest.fixture
def folder(tuning_folder):
    return tuning_folder


@pytest.fixture(autouse=True)
def silent():
    """A warning that no test expects is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def table(entries, **changes):
    return Table(device_name(CPU), versions(CPU), "2026-11-24", entries)._replace(**changes)


def call(batch=3, dtype=torch.float32, layout=torch.contiguous_format):
    x = torch.zeros(batch, 16, 9, 7, dtype=dtype).contiguous(memory_format=layout)
    return x, torch.zeros(32, 16, 3, 3, dtype=dtype)


# The file


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
    "an unknown backend": (document({"backend": "cudnn"}), r"entries\[0\].backend: expected one of library, native"),
    "a backend as a list": (document({"backend": ["library"]}), r"entries\[0\].backend"),
    "an unknown backend's time": (document({"milliseconds": {"triton": 1, "os": 1}}), r"entries\[0\].milliseconds"),
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
def test_a_broken_file_is_reported_once_and_ignored(folder, content, message):
    tuning.save(folder / "good.json", table({KEY: NATIVE}))
    broken = folder / "broken.json"
    broken.write_bytes(content)
    tuning.reload()
    with pytest.warns(UserWarning, match=message) as warned:
        assert tuning.lookup(CPU, KEY) == NATIVE
    assert len(warned) == 1 and str(broken) in str(warned[0].message) and len(str(warned[0].message)) < 1200
    assert tuning.lookup(CPU, KEY) == NATIVE and tuning.lookup(torch.device("cpu", 0), KEY) == NATIVE


def make_loop(path):
    path.symlink_to(path)


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
def test_a_path_that_is_no_file_is_reported_and_ignored(folder, make, message):
    folder.mkdir(parents=True)
    make(folder / "odd.json")
    with pytest.warns(UserWarning, match=f"odd.json is not used: .*{message}"):
        assert tuning.lookup(CPU, KEY) is None
    assert tuning.lookup(CPU, KEY) is None


def test_a_path_that_is_no_folder_is_reported_only_if_it_cannot_be_listed(folder, monkeypatch):
    assert tuning.lookup(CPU, KEY) is None  # absent
    folder.parent.mkdir(parents=True)
    folder.write_text("a file")
    tuning.reload()
    assert tuning.lookup(CPU, KEY) is None
    folder.unlink()
    make_loop(folder)
    tuning.reload()
    with pytest.warns(UserWarning, match="the tuning tables of .* are not used"):
        assert tuning.lookup(CPU, KEY) is None


def test_other_files_of_the_folder_are_left_alone(folder):
    folder.mkdir(parents=True)
    for name in ("notes.txt", "table.json.123.part", "json"):
        (folder / name).write_text("no table")
    assert tuning.lookup(CPU, KEY) is None


# Tables that apply


@pytest.mark.parametrize("name", versions(CPU))
def test_a_table_of_another_version_does_not_count(folder, name):
    for other in ("0.0", None):
        tuning.save(folder / "a.json", table({KEY: NATIVE}, versions={**versions(CPU), name: other}))
        assert tuning.lookup(CPU, KEY) is None
    tuning.save(folder / "b.json", table({KEY: NATIVE}))
    assert tuning.lookup(CPU, KEY) == NATIVE


def test_a_table_of_another_device_does_not_count(folder, monkeypatch):
    tuning.save(folder / "a.json", table({KEY: NATIVE}, device="NVIDIA H100 PCIe"))
    assert tuning.lookup(CPU, KEY) is None
    threads = torch.get_num_threads()
    tuning.save(folder / "b.json", table({KEY: NATIVE}))
    assert tuning.lookup(CPU, KEY) == NATIVE
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    tuning.reload()
    assert tuning.lookup(CPU, KEY) is None


def test_the_users_tables_come_before_the_shipped(folder, tmp_path):
    tuning.save(tmp_path / "shipped" / "a.json", table({KEY: LIBRARY, KEY._replace(batch=8): LIBRARY}))
    assert tuning.lookup(CPU, KEY) == LIBRARY
    tuning.save(folder / "b.json", table({KEY: NATIVE}))
    assert tuning.lookup(CPU, KEY) == NATIVE
    assert tuning.lookup(CPU, KEY._replace(batch=8)) == LIBRARY


def test_shipped_tables_are_valid():
    for path in tuning.table.SHIPPED.glob("*.json"):
        assert tuning.read(path).entries and path.name.endswith(".json")


def test_a_lookup_reads_the_files_once(folder, monkeypatch):
    tuning.save(folder / "a.json", table({KEY: NATIVE}))
    read = []
    monkeypatch.setattr(tuning.table, "parse", lambda data: read.append(1) or parse(data))
    for _ in range(3):
        assert tuning.lookup(CPU, KEY) == NATIVE and tuning.lookup(CPU, KEY._replace(groups=2)) is None
    assert len(read) == 1


@pytest.mark.parametrize("device", ["meta", "cuda", "cuda:3"])
def test_devices_without_a_table(folder, device):
    if device != "meta" and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    tuning.save(folder / "a.json", table({KEY: NATIVE}))
    assert tuning.lookup(torch.device(device), KEY) is None


def test_where_the_user_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for cache in ("", "relative/cache"):  # a relative one counts for nothing: XDG Base Directory Specification
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        assert tuning.user_folder() == tmp_path / ".cache" / "atrous" / "tuning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tuning.user_folder() == tmp_path / ".cache" / "atrous" / "tuning"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert tuning.user_folder() is None
    tuning.reload()
    assert tuning.lookup(CPU, KEY) is None
    tuning.reload()


def test_file_names_are_plain(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3 (../x)")
    assert file_name(torch.device("cuda", 0)) == "nvidia-h100-80gb-hbm3-..-x-torch-2.11.0-cu130.json"
    assert "/" not in file_name(CPU) and file_name(CPU).endswith(".json")


# The key of a call


@pytest.mark.parametrize("batch, expected", [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (256, 256), (257, 512)])
def test_buckets(batch, expected):
    assert tuning.bucket(batch) == expected


def test_the_key_holds_all_that_a_choice_depends_on(folder):
    tuning.save(folder / "a.json", table({KEY: NATIVE, KEY._replace(frozen=True, layout="channels_last"): LIBRARY}))
    assert tuning.measured(*call(), SPEC, False) == NATIVE
    assert tuning.measured(*call(4), SPEC, False) == NATIVE  # the same bucket
    last = call(layout=torch.channels_last)
    assert tuning.measured(*last, SPEC, False, frozen=True) == LIBRARY
    for others in ((*last, SPEC, False), (*call(5), SPEC, False), (*call(), SPEC, True), (*call(), Spec(), False)):
        assert tuning.measured(*others) is None
    assert tuning.measured(*call(dtype=torch.bfloat16), SPEC, False) is None
    assert tuning.measured(*call(), SPEC, False, frozen=True) is None
    cut = call(layout=torch.channels_last)[0][:, :, :, 1:]
    assert tuning.key(cut, call()[1], SPEC, layout="NCHW", residual=False).size == (9, 6)


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_the_key_on_a_gpu(precision):
    """On fake CUDA tensors: tf32 if torch allows it, and no weight is prepacked."""

    def key(dtype):
        with FakeTensorMode():
            x, w = (torch.empty(1, 16, 3, 3, dtype=dtype, device="cuda") for _ in range(2))
        return tuning.key(x, w, SPEC, layout="NCHW", residual=False, frozen=True)

    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, precision
    try:
        assert key(torch.float32).tf32 == (precision == "tf32") and not key(torch.float16).tf32
        assert not key(torch.float32).frozen
        on_cpu = tuning.key(*call(), SPEC, layout="NCHW", residual=False, frozen=True)
        assert on_cpu.frozen and not on_cpu.tf32
    finally:
        conv.fp32_precision = before


@pytest.mark.parametrize("dynamic", [False, True])
@torch.no_grad()
def test_in_a_graph_the_choice_is_a_constant(folder, dynamic):
    """With static shapes it is the table's; with dynamic shapes there is none."""
    spec, graphs = Spec(padding=(1, 1)), []
    key = KEY._replace(padding=(1, 1), dilation=(1, 1))
    tuning.save(folder / "a.json", table({key: LIBRARY, key._replace(batch=1): NATIVE}))
    x, w = torch.randn(3, 16, 9, 7), torch.randn(32, 16, 3, 3)

    def run(x, w):
        entry = tuning.measured(x, w, spec, False)
        return x + (0 if entry is None else 1 if entry.backend == "library" else 2)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def layer(x):
        return atrous.conv_bn_act(x, w, padding=1)

    torch.compiler.reset()
    options = {"fullgraph": True, "backend": backend, "dynamic": dynamic}
    compiled = torch.compile(run, **options)
    added = [float((compiled(x[:n], w) - x[:n]).mean().round()) for n in (3, 2, 1)]
    assert added == ([0, 0, 0] if dynamic else [1, 0, 2])
    torch.testing.assert_close(torch.compile(layer, **options)(x), layer(x), atol=1e-4, rtol=1e-4)
    plain = any("conv2d" in str(node.target) for node in graphs[-1].graph.nodes)
    assert plain != (dynamic and atrous.ops.library_loaded)  # library by the table; native by the rule
    torch.compiler.reset()


# The same shape at another dilation


def test_a_shape_is_a_key_without_its_dilation():
    """A dilation whose padding keeps the size of the output is the same work for a Triton kernel."""
    plain = KEY._replace(padding=(1, 1), dilation=(1, 1))
    assert (
        tuning.shape_of(KEY) == tuning.shape_of(plain) == tuning.shape_of(KEY._replace(padding=(4, 4), dilation=(4, 4)))
    )
    others = [
        KEY._replace(padding=(1, 1)),
        KEY._replace(stride=(2, 2)),
        KEY._replace(size=(8, 7)),
        KEY._replace(batch=8),
    ]
    others += [KEY._replace(kernel=(1, 1), padding=(0, 0)), KEY._replace(residual=True), KEY._replace(tf32=True)]
    assert len({tuning.shape_of(key) for key in (KEY, *others)}) == 1 + len(others)


def test_a_config_serves_its_shape_at_any_dilation_and_a_choice_its_own_alone(folder):
    """A library has other algorithms for a dilated convolution: its fastest backend was not measured."""
    other, plain = TRITON._replace(config=CONV[0]), KEY._replace(padding=(1, 1), dilation=(1, 1))
    four, far = Spec((1, 1), (4, 4), (4, 4)), Spec((1, 1), (5, 5), (4, 4))
    tuning.save(folder / "a.json", table({KEY: TRITON, plain: NATIVE}))
    assert tuning.measured_config(*call(), SPEC, False) == tuning.measured_config(*call(), four, False) == TRITON.config
    assert tuning.measured(*call(), four, False) is None and tuning.measured(*call(), SPEC, False) == TRITON
    assert tuning.measured_config(*call(), far, False) is None and tuning.measured_config(*call(), SPEC, True) is None
    tuning.save(folder / "a.json", table({plain: other}))
    assert tuning.measured_config(*call(), SPEC, False) == TRITON.config  # its own comes first
    assert tuning.measured_config(*call(), four, False) == CONV[0]  # else that of the smallest dilation


# Writing


def test_save_merges_what_is_of_the_same_device_and_versions(folder):
    path, other = folder / "a.json", KEY._replace(batch=8)
    tuning.save(path, table({KEY: LIBRARY}))
    tuning.save(path, table({other: NATIVE}, date="2026-12-01"))
    assert tuning.read(path) == table({KEY: LIBRARY, other: NATIVE}, date="2026-12-01")
    tuning.save(path, table({KEY: NATIVE}))
    assert tuning.read(path).entries == {KEY: NATIVE, other: NATIVE}
    renewed = table({KEY: LIBRARY}, versions={**versions(CPU), "torch": "9.0"})
    tuning.save(path, renewed)
    assert tuning.read(path) == renewed
    assert [file.name for file in folder.iterdir()] == ["a.json"]


def test_a_choice_counts_as_soon_as_it_is_saved(folder):
    assert tuning.measured(*call(), SPEC, False) is None
    tuning.save(folder / "a.json", table({KEY: NATIVE}))
    assert tuning.measured(*call(), SPEC, False) == NATIVE
    (folder / "a.json").unlink()
    tuning.reload()
    assert tuning.measured(*call(), SPEC, False) is None


@pytest.mark.parametrize("step", ["replace", "write"])
def test_a_write_that_fails_leaves_what_was_there(folder, monkeypatch, step):
    path = folder / "a.json"
    tuning.save(path, table({KEY: LIBRARY}))
    before = path.read_bytes()

    def refuse(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "replace") if step == "replace" else (Path, "write_text")), refuse)
    with pytest.raises(OSError, match="No space left"):
        tuning.save(path, table({KEY: NATIVE}))
    assert path.read_bytes() == before and [file.name for file in folder.iterdir()] == ["a.json"]


def test_a_file_that_is_no_table_is_not_overwritten(folder):
    folder.mkdir(parents=True)
    (folder / "notes.json").write_text('{"my": "notes"}')
    make_loop(folder / "loop.json")
    with pytest.raises(ValueError, match="table: expected the fields"):
        tuning.save(folder / "notes.json", table({KEY: NATIVE}))
    with pytest.raises(OSError):
        tuning.save(folder / "loop.json", table({KEY: NATIVE}))
    assert (folder / "notes.json").read_text() == '{"my": "notes"}' and (folder / "loop.json").is_symlink()
