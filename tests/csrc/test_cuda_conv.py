"""Tests the CUDA C++ convolution on a GPU with every main loop, also those that the small cases of other tests skip."""

from __future__ import annotations

import contextlib

import launches
import pytest
import torch

import atrous
from atrous import testing
from atrous.backends import selection
from atrous.ops import device_support
from bench.gpu.conv_tiles import TILES

pytestmark = pytest.mark.gpu
NHWC = torch.channels_last

CASES = [
    testing.Case("large tiles", (32, 64, 56, 56), 64, padding=2, dilation=2, residual="before"),
    testing.Case("wide tiles", (32, 128, 28, 28), 256, stride=2, residual="after", slope="relu"),
    testing.Case("channels that fill no step", (64, 104, 29, 31), 136, kernel=(3, 2), padding=(3, 2), dilation=(4, 3)),
    testing.Case("in splits", (2, 512, 7, 7), 512, residual="before"),
    testing.Case("a stem", (16, 3, 97, 99), 64, kernel=(7, 7), stride=2, padding=3),
]


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_main_loop(case, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32")  # as these kernels multiply fp32
    arguments = testing.arguments(case, dtype, "cuda", NHWC)
    if reasons := selection.reasons("native", arguments["input"]):
        pytest.skip("; ".join(reasons))
    y = atrous.conv_bn_act(**arguments, backend="native")
    assert y.is_contiguous(memory_format=NHWC)
    testing.assert_close(y, arguments)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_named_tile(case, tile, monkeypatch):
    """Every tile computes every case, whichever is predicted; a stem has its own tile."""
    if reasons := device_support.native_reasons(torch.device("cuda", torch.cuda.current_device())):
        pytest.skip("; ".join(reasons))
    if case.name == "a stem":
        expected = pytest.raises(RuntimeError, match=f"{tile} cannot compute this convolution: .* 4 channels")
    elif tile not in launches.tiles():
        expected = pytest.raises(RuntimeError, match=f"{tile} cannot compute this convolution: .* built for 9.0a")
    else:
        expected = contextlib.nullcontext()
    with expected:
        launches.in_tile(tile, test_every_main_loop, case, torch.bfloat16, monkeypatch)
