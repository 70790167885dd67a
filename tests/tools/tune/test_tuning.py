"""Tuning tables: the ones that apply, and the key of a call."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from tuning_cases import CPU, KEY, LIBRARY, NATIVE, SPEC, TRITON, call, table

import atrous
from atrous import tuning
from atrous.core.spec import Spec
from atrous.triton_kernels.conv.configs import CONV
from atrous.tuning.device_id import file_name, versions
from atrous.tuning.format import parse

pytestmark = pytest.mark.filterwarnings("error")  # a warning that no test expects


@pytest.mark.parametrize("name", versions(CPU))
def test_a_table_of_another_version_does_not_count(tuning_folder, name):
    for other in ("0.0", None):
        tuning.save(tuning_folder / "a.json", table({KEY: NATIVE}, versions={**versions(CPU), name: other}))
        assert tuning.lookup(CPU, KEY) is None
    tuning.save(tuning_folder / "b.json", table({KEY: NATIVE}))
    assert tuning.lookup(CPU, KEY) == NATIVE


def test_a_table_of_another_device_does_not_count(tuning_folder, monkeypatch):
    tuning.save(tuning_folder / "a.json", table({KEY: NATIVE}, device="NVIDIA H100 PCIe"))
    assert tuning.lookup(CPU, KEY) is None
    threads = torch.get_num_threads()
    tuning.save(tuning_folder / "b.json", table({KEY: NATIVE}))
    assert tuning.lookup(CPU, KEY) == NATIVE
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    tuning.reload()
    assert tuning.lookup(CPU, KEY) is None


def test_the_users_tables_come_before_the_shipped(tuning_folder, tmp_path):
    tuning.save(tmp_path / "shipped" / "a.json", table({KEY: LIBRARY, KEY._replace(batch=8): LIBRARY}))
    assert tuning.lookup(CPU, KEY) == LIBRARY
    tuning.save(tuning_folder / "b.json", table({KEY: NATIVE}))
    assert tuning.lookup(CPU, KEY) == NATIVE
    assert tuning.lookup(CPU, KEY._replace(batch=8)) == LIBRARY


def test_shipped_tables_are_valid():
    for path in tuning.table.SHIPPED.glob("*.json"):
        assert tuning.read(path).entries and path.name.endswith(".json")


def test_a_lookup_reads_the_files_once(tuning_folder, monkeypatch):
    tuning.save(tuning_folder / "a.json", table({KEY: NATIVE}))
    read = []
    monkeypatch.setattr(tuning.table, "parse", lambda data: read.append(1) or parse(data))
    for _ in range(3):
        assert tuning.lookup(CPU, KEY) == NATIVE and tuning.lookup(CPU, KEY._replace(groups=2)) is None
    assert len(read) == 1


@pytest.mark.parametrize("device", ["meta", "cuda", "cuda:3"])
def test_devices_without_a_table(tuning_folder, device):
    if device != "meta" and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    tuning.save(tuning_folder / "a.json", table({KEY: NATIVE}))
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


def test_the_key_holds_all_that_a_choice_depends_on(tuning_folder):
    frozen = KEY._replace(frozen=True, layout="channels_last")
    tuning.save(tuning_folder / "a.json", table({KEY: NATIVE, frozen: LIBRARY}))
    assert tuning.measured(*call(), SPEC, False) == NATIVE
    assert tuning.measured(*call(4), SPEC, False) == NATIVE  # the same bucket
    last = call(layout=torch.channels_last)
    assert tuning.measured(*last, SPEC, False, frozen=True) == LIBRARY
    for others in ((*last, SPEC, False), (*call(5), SPEC, False), (*call(), SPEC, True), (*call(), Spec(), False)):
        assert tuning.measured(*others) is None
    assert tuning.measured(*call(dtype=torch.bfloat16), SPEC, False) is None
    assert tuning.measured(*call(), SPEC, False, frozen=True) is None
    cut = call(layout=torch.channels_last)[0][:, :, :, 1:]
    assert tuning.key(cut, call()[1], SPEC, residual=False).size == (9, 6)


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_the_key_on_a_gpu(precision):
    """On fake CUDA tensors: tf32 if torch allows it, and no weight is prepacked."""

    def key(dtype):
        with FakeTensorMode():
            x, w = (torch.empty(1, 16, 3, 3, dtype=dtype, device="cuda") for _ in range(2))
        return tuning.key(x, w, SPEC, residual=False, frozen=True)

    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, precision
    try:
        assert key(torch.float32).tf32 == (precision == "tf32") and not key(torch.float16).tf32
        assert not key(torch.float32).frozen
        on_cpu = tuning.key(*call(), SPEC, residual=False, frozen=True)
        assert on_cpu.frozen and not on_cpu.tf32
    finally:
        conv.fp32_precision = before


@pytest.mark.parametrize("dynamic", [False, True])
@torch.no_grad()
def test_in_a_graph_the_choice_is_a_constant(tuning_folder, dynamic):
    """With static shapes it is the table's; with dynamic shapes there is none."""
    spec, graphs = Spec(padding=(1, 1)), []
    key = KEY._replace(padding=(1, 1), dilation=(1, 1))
    tuning.save(tuning_folder / "a.json", table({key: LIBRARY, key._replace(batch=1): NATIVE}))
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


def test_a_config_serves_its_shape_at_any_dilation_and_a_choice_its_own_alone(tuning_folder):
    """A library has other algorithms for a dilated convolution: its fastest backend was not measured."""
    other, plain = TRITON._replace(config=CONV[0]), KEY._replace(padding=(1, 1), dilation=(1, 1))
    four, far = Spec((1, 1), (4, 4), (4, 4)), Spec((1, 1), (5, 5), (4, 4))
    tuning.save(tuning_folder / "a.json", table({KEY: TRITON, plain: NATIVE}))
    assert tuning.measured_config(*call(), SPEC, False) == tuning.measured_config(*call(), four, False) == TRITON.config
    assert tuning.measured(*call(), four, False) is None and tuning.measured(*call(), SPEC, False) == TRITON
    assert tuning.measured_config(*call(), far, False) is None and tuning.measured_config(*call(), SPEC, True) is None
    tuning.save(tuning_folder / "a.json", table({plain: other}))
    assert tuning.measured_config(*call(), SPEC, False) == TRITON.config  # its own comes first
    assert tuning.measured_config(*call(), four, False) == CONV[0]  # else that of the smallest dilation
