"""fp32 precision: torch's setting reaches the kernels, tf32 has an error budget, GPU tests run without tf32."""

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
from atrous.core.spec import Epilogue, Spec
from atrous.tools.tune import candidates
from atrous.triton_kernels.conv.configs import precision

TESTS = Path(__file__).parents[1]
CASE = testing.Case("deep", (2, 256, 9, 9), 32, residual="before")


@contextlib.contextmanager
def setting(name: str, value: object):
    """Sets allow_tf32, the old name, or fp32_precision of convolutions, the new one."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    setattr(*((cudnn, name) if name == "allow_tf32" else (cudnn.conv, name)), value)
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


SETTINGS = [("allow_tf32", True, "tf32"), ("allow_tf32", False, "ieee"),
        ("fp32_precision", "tf32", "tf32"), ("fp32_precision", "ieee", "ieee")]  # fmt: skip


@pytest.mark.parametrize("name, value, expected", SETTINGS)
def test_precision_follows_torch_s_setting(name, value, expected):
    with setting(name, value):
        assert precision(torch.float32) == expected and tuning.tf32() == (expected == "tf32")


@pytest.mark.parametrize("name, value, expected", SETTINGS)
def test_the_setting_reaches_the_kernels(name, value, expected):
    pytest.importorskip("triton")
    from atrous.triton_kernels.conv import forward as conv
    from atrous.triton_kernels.conv import statistics

    x, w = torch.randn(2, 16, 9, 9), torch.randn(32, 16, 3, 3)
    spec = Spec(padding=(1, 1))
    for module, call in ((conv, lambda: conv.conv_epilogue(x, w, None, spec, Epilogue())),
                         (statistics, lambda: statistics.conv_statistics(x, w, None, spec))):  # fmt: skip
        with (
            setting(name, value),
            mock.patch.object(module, "launch") as launch,
            mock.patch.object(module, "check_device"),
        ):
            call()
        (plan,) = {one.args[0] for one in launch.call_args_list}
        assert plan.constants["T"].precision == expected


CHECK_WITHOUT_TF32 = """
import torch
from atrous.triton_kernels.conv.configs import precision

def test_precision():
    assert torch.get_default_device().type == "meta"
    assert precision(torch.float32) == "ieee" and torch.backends.cudnn.allow_tf32 is False
"""


def test_the_tests_of_another_device_are_without_tf32(tmp_path):
    """Their error budgets have no term for tf32; reading the old name does not raise, and torch itself reads it."""
    (tmp_path / "test_without_tf32.py").write_text(CHECK_WITHOUT_TF32)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "--device", "meta", "-p", "no:cacheprovider"]
    paths = os.pathsep.join([str(TESTS), str(TESTS / "support"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# The budget of tf32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("value", ["tf32", "ieee"])
def test_fp32_operands_are_rounded_on_a_gpu_if_torch_allows_it(value, dtype):
    with FakeTensorMode():
        on_gpu, on_cpu = (torch.empty(1, dtype=dtype, device=device) for device in ("cuda", "cpu"))
    with setting("fp32_precision", value):
        rounded = value == "tf32" and dtype == torch.float32
        assert testing.product_rounding(on_gpu) == (2.0**-9 if rounded else 0.0)
        assert testing.product_rounding(on_cpu) == 0.0


def in_tf32(call: dict) -> torch.Tensor:
    """conv_bn_act of operands truncated to the 10 mantissa bits that a tensor core reads in tf32."""
    cut = {name: (call[name].view(torch.int32) & ~0x1FFF).view(torch.float32) for name in ("input", "weight")}
    z = torch.conv2d(cut["input"], cut["weight"], None, *(call[n] for n in ("stride", "padding", "dilation", "groups")))
    vectors = (call[name] for name in ("running_mean", "running_var", "bn_weight", "bn_bias"))
    e = Epilogue(*vectors, slope_kind="tensor", slope=call["slope"], residual=call["residual"])
    return reference.epilogue(z, e)


def tuner_check(y: torch.Tensor, call: dict) -> None:
    candidates.check(y, candidates.expected(call))


@pytest.mark.parametrize(
    "check, error",
    [(testing.assert_close, AssertionError), (tuner_check, candidates.WrongResult)],
    ids=["tests", "tuner"],
)
def test_the_budget_of_tf32(check, error, monkeypatch):
    """It accepts tf32 results, which the exact budget refuses; both refuse a convolution with a tap missing."""
    call = testing.arguments(CASE)
    y = in_tf32(call)
    with pytest.raises(error):
        check(y, call)
    monkeypatch.setattr(testing, "product_rounding", lambda input: 2.0**-9)
    check(y, call)
    call["weight"][:, :, 0, 0] = 0
    with pytest.raises(error):
        check(y, call)
