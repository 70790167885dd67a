"""fp32 products: tests of a GPU are without tf32, tf32 has a budget, and what torch asks for reaches the kernels."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from atrous import reference, testing, tuning
from atrous.core.spec import Epilogue
from atrous.tools.tune import candidates
from atrous.triton_kernels.conv.configs import precision

TESTS = Path(__file__).parents[1]
CASE = testing.Case("deep", (2, 256, 9, 9), 32, residual="before")


@contextlib.contextmanager
def asked(name: str, value: object):
    """What a user sets: the old name, or the new one of convolutions."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    setattr(*((cudnn, name) if name == "allow_tf32" else (cudnn.conv, name)), value)
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


WAYS = [("allow_tf32", True, "tf32"), ("allow_tf32", False, "ieee"),
        ("fp32_precision", "tf32", "tf32"), ("fp32_precision", "ieee", "ieee")]  # fmt: skip


@pytest.mark.parametrize("name, value, expected", WAYS)
def test_what_torch_is_told(name, value, expected):
    with asked(name, value):
        assert precision(torch.float32) == expected and tuning.tf32() == (expected == "tf32")


@pytest.mark.parametrize("name, value, expected", WAYS)
def test_it_reaches_the_kernels(name, value, expected):
    pytest.importorskip("triton")
    from atrous.triton_kernels.conv import forward as conv
    from atrous.triton_kernels.conv import statistics

    x, w = torch.randn(2, 16, 9, 9), torch.randn(32, 16, 3, 3)
    geometry = None, (1, 1), (1, 1), (1, 1), 1
    for module, call in ((conv, lambda: conv.conv_epilogue(x, w, *geometry, *Epilogue())),
                         (statistics, lambda: statistics.conv_statistics(x, w, *geometry))):  # fmt: skip
        with (
            asked(name, value),
            mock.patch.object(module, "launch") as launch,
            mock.patch.object(module, "check_device"),
        ):
            call()
        (plan,) = {one.args[0] for one in launch.call_args_list}
        assert plan.constants["T"].precision == expected


TOLD = """
import torch
from atrous.triton_kernels.conv.configs import precision

def test_products():
    assert torch.get_default_device().type == "meta"
    assert precision(torch.float32) == "ieee" and torch.backends.cudnn.allow_tf32 is False
"""


def test_the_tests_of_another_device_are_without_tf32(tmp_path):
    """Their budgets know none; the old name may be read, as torch's own code does."""
    (tmp_path / "test_told.py").write_text(TOLD)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "--device", "meta", "-p", "no:cacheprovider"]
    paths = os.pathsep.join([str(TESTS), str(TESTS / "support"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# The budget of tf32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("wanted", ["tf32", "ieee"])
def test_products_are_rounded_on_a_gpu_in_fp32_where_torch_allows_it(wanted, dtype):
    with FakeTensorMode():
        there, here = (torch.empty(1, dtype=dtype, device=device) for device in ("cuda", "cpu"))
    with asked("fp32_precision", wanted):
        rounded = wanted == "tf32" and dtype == torch.float32
        assert testing.product_rounding(there) == (2.0**-9 if rounded else 0.0)
        assert testing.product_rounding(here) == 0.0


def in_tf32(made: dict) -> torch.Tensor:
    """conv_bn_act of factors that are cut to the 10 bits that a tensor core reads of them."""
    cut = {name: (made[name].view(torch.int32) & ~0x1FFF).view(torch.float32) for name in ("input", "weight")}
    z = torch.conv2d(cut["input"], cut["weight"], None, *(made[n] for n in ("stride", "padding", "dilation", "groups")))
    vectors = (made[name] for name in ("running_mean", "running_var", "bn_weight", "bn_bias"))
    return reference.epilogue(z, *vectors, 1e-5, "tensor", 1.0, 1.0, made["slope"], None, made["residual"], False)


def tuners_check(y: torch.Tensor, made: dict) -> None:
    candidates.check(y, candidates.expected(made))


@pytest.mark.parametrize(
    "check, error",
    [(testing.assert_close, AssertionError), (tuners_check, candidates.Wrong)],
    ids=["tests", "tuner"],
)
def test_the_budget_of_tf32(check, error, monkeypatch):
    """It takes products of tf32, which the one of exact products refuses; one tap less is wrong in both."""
    made = testing.arguments(CASE)
    y = in_tf32(made)
    with pytest.raises(error):
        check(y, made)
    monkeypatch.setattr(testing, "product_rounding", lambda input: 2.0**-9)
    check(y, made)
    made["weight"][:, :, 0, 0] = 0
    with pytest.raises(error):
        check(y, made)
