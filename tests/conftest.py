"""Fixtures that the tests share: a seed per test, the available backends, poisoned memory, the CLI."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import zlib
from unittest import mock

# No tuning tables of the user are read: the tests must not depend on measurements of this machine.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="atrous-tests-")
# Set before torch loads OpenMP: spinning threads make small tensors five times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Set before numpy loads its BLAS, for the same reason: the matrix products of Triton's interpreter are small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import failures_at_once
import pytest
import torch
from drawn import pytest_collection_modifyitems  # noqa: F401  # a hook
from lost_gpu import pytest_runtest_logreport  # noqa: F401  # a hook
from oracle import Margins
from parameters import BACKENDS

import atrous
from atrous.tools import cli

# pytest's log capture adds handlers to loggers that do not propagate; with one, torch writes down all that it compiles,
# which takes a third of the time of a test that compiles.
logging.getLogger("torch.__trace").propagate = True

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    import quick_interpreter

    quick_interpreter.quicken()


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the tensors; .ci/gpu right sets cuda")
    parser.addoption("--whole", action="store_true", help="no test draws: every parameter and every combination")
    at_once = "print a failure at once: a run that is killed prints none at its end (.ci/gpu)"
    parser.addoption("--failures-at-once", action="store_true", help=at_once)


def pytest_unconfigure(config):
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_configure(config):
    if config.getoption("--failures-at-once"):
        failures_at_once.register(config)
    if config.getoption("--device") != "cpu":
        torch.set_default_device(config.getoption("--device"))
        # Budgets of fp32 have no term for tf32, which convolutions on a GPU use by default; tf32 has its own tests
        # (triton/test_precision.py). If only `conv.fp32_precision` were set, reading allow_tf32 would raise.
        torch.backends.cudnn.allow_tf32 = False


def _available(request):
    """Returns the name of the backend, or skips the test with the backend's reasons on the test device."""
    reasons = [] if request.param == "auto" else atrous.backends.selection.reasons(request.param, torch.empty(0))
    if reasons:
        pytest.skip(f"{request.param}: {'; '.join(reasons)}")
    return request.param


@pytest.fixture(autouse=True)
def seed(request):
    """Seeds torch by the test's id: the same numbers in each run and in any order of the tests."""
    number = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(number)
    return number


@pytest.fixture(autouse=True, scope="session")
def fresh_plans():
    """Clears the cached launch plans whenever a mock.patch begins or ends, since plans depend on patched constants."""
    patch = type(mock.patch("os.name"))

    def clearing(step):
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
            patches.setattr(patch, step, clearing(getattr(patch, step)))
        yield


@pytest.fixture
def whole(request):
    """True if the compile gates take every combination."""
    return request.config.getoption("--whole")


@pytest.fixture
def generator(seed):
    """A generator on the test device; a CPU generator cannot fill tensors of other devices."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """The name of each backend that can convolve on the test device.

    The test is skipped, with the reasons, at a call that a named backend refuses: `native` computes few of these cases
    on a GPU.
    """
    name, selection = _available(request), atrous.backends.selection
    reasons = selection.reasons

    def skip_refused(*call):
        if name != "auto" and (refused := reasons(*call)):
            pytest.skip(f"{name}: {'; '.join(refused)}")
        return reasons(*call)

    monkeypatch.setattr(selection, "reasons", skip_refused)
    return name


@pytest.fixture
def tuning_folder(tmp_path, monkeypatch):
    """A user folder of tuning tables, not created yet; the shipped tables are in tmp_path / "shipped"."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(atrous.tuning.table, "SHIPPED", tmp_path / "shipped")
    atrous.tuning.reload()
    yield tmp_path / "cache" / "atrous" / "tuning"
    atrous.tuning.reload()


@pytest.fixture
def poison():
    """poison(tensor) copies a tensor, strides included, into memory full of NaN that no kernel may read or write."""
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
