"""Fixtures that the tests share: a seed a test, the backend rows that can convolve here, poisoned memory, the CLI."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import zlib
from unittest import mock

# Nobody's tuning tables are read: a choice that was measured on this machine is none of the tests' own.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="atrous-tests-")
# Before torch loads OpenMP: waiting threads must not spin, or small tensors on a busy machine take five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Before numpy loads its BLAS, for the same reason: the interpreter's products of tiles are small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from lost_gpu import pytest_runtest_logreport  # noqa: F401  # a hook
from oracle import Margins

import atrous
from atrous.tools import cli

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    import quick_interpreter

    quick_interpreter.quicken()


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the tensors of the cases lie; .ci/gpu right says cuda")
    parser.addoption("--whole", action="store_true", help="the compile gates leave no combination out")


def pytest_unconfigure(config):
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_configure(config):
    if config.getoption("--device") != "cpu":
        torch.set_default_device(config.getoption("--device"))
        # Budgets of fp32 have no term for tf32, which convolutions on a GPU use unless told not to; tf32 has tests of
        # its own (gpu/test_precision.py). `conv.fp32_precision` alone would make this name raise where it is read.
        torch.backends.cudnn.allow_tf32 = False


def _runs(request):
    """The name of the row, or a skip with the row's own reasons on the device of the tests."""
    reasons = [] if request.param == "auto" else atrous.backends.selection.reasons(request.param, torch.empty(0))
    if reasons:
        pytest.skip(f"{request.param}: {'; '.join(reasons)}")
    return request.param


@pytest.fixture(autouse=True)
def seed(request):
    """Every test draws its own numbers, the same in each run and in any order of the tests."""
    number = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(number)
    return number


@pytest.fixture(autouse=True, scope="session")
def fresh_plans():
    """The launchers' plans are made once for a kind of call, out of constants that tests patch: they are made again
    wherever a patch begins or ends."""
    patch = type(mock.patch("os.name"))

    def forgetting(step):
        def run(*arguments):
            try:
                return step(*arguments)
            finally:
                for name in [name for name in sys.modules if name.startswith("atrous.triton_kernels.")]:
                    for value in list(vars(sys.modules[name]).values()):
                        getattr(value, "cache_clear", lambda: None)()

        return run

    with pytest.MonkeyPatch.context() as patches:
        for step in ("__enter__", "__exit__"):
            patches.setattr(patch, step, forgetting(getattr(patch, step)))
        yield


@pytest.fixture
def whole(request):
    """Whether the compile gates take every combination."""
    return request.config.getoption("--whole")


@pytest.fixture
def generator(seed):
    """Of the device of the tests: a CPU's generator fills no other tensor."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


# The row `triton` convolves on a card, and on a CPU under the interpreter, where test_triton_cases.py runs the cases.
ROWS = ["library", "native", "auto", *([] if atrous.backends.selection.available("triton") else ["triton"])]


@pytest.fixture(params=ROWS)
def row(request):
    """Every row that can convolve on this device."""
    return _runs(request)


@pytest.fixture
def tuning_folder(tmp_path, monkeypatch):
    """The user's folder of tuning tables, which is not there yet; the shipped ones are in tmp_path / "shipped"."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(atrous.tuning.table, "SHIPPED", tmp_path / "shipped")
    atrous.tuning.reload()
    yield tmp_path / "cache" / "atrous" / "tuning"
    atrous.tuning.reload()


@pytest.fixture
def poison():
    """poison(tensor): the same values and strides inside memory full of NaN, which no kernel may read or write."""
    margins = Margins()
    yield margins.place
    margins.check()


@pytest.fixture
def run(capsys, monkeypatch):
    """run("explain", "resnet34") -> exit status, stdout, stderr."""

    def call(*arguments, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
