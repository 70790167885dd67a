"""Tests the CUDA C++ convolution on a GPU: every main loop, training, and the convolutions that it refuses."""

from __future__ import annotations

import contextlib
import re

import launches
import oracle
import pytest
import torch

import atrous
from atrous import testing
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
    testing.Case("a stem of patches in odd rows", (2, 3, 33, 33), 64, kernel=(4, 4), stride=4),
]


def skip_without_kernels():
    if reasons := device_support.native_reasons(torch.device("cuda", torch.cuda.current_device())):
        pytest.skip("; ".join(reasons))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_main_loop(case, dtype, monkeypatch):
    skip_without_kernels()
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32")  # as these kernels multiply fp32
    arguments = testing.arguments(case, dtype, "cuda", NHWC)
    y = atrous.conv_bn_act(**arguments, backend="native")
    assert y.is_contiguous(memory_format=NHWC)
    testing.assert_close(y, arguments)


def test_training():
    """The convolution is ours in training too; its gradients are torch's."""
    case = testing.Case("trained", (8, 32, 14, 14), 64, slope=0.1, bn=False)
    arguments = testing.arguments(case, torch.bfloat16, "cuda", NHWC)
    skip_without_kernels()
    y = oracle.agree("conv_bn_act", "native", arguments | {"training": True})
    assert y.is_contiguous(memory_format=NHWC)


REFUSED = [
    (dict(layout=torch.contiguous_format), "input: expected channels_last, got NCHW"),
    (dict(groups=2), "groups: expected 1, got 2"),
    (dict(dtype=torch.float64), "input: expected float16, bfloat16 or float32, got float64"),
    (dict(out_channels=12), "weight: expected a multiple of 8 output channels, got 12"),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("changes, reason", REFUSED)
def test_a_named_backend_refuses_what_its_kernels_do_not_compute(changes, reason, training):
    """It never runs the library's convolution; backends library and auto compute the call."""
    skip_without_kernels()
    options = dict(layout=NHWC, groups=1, dtype=torch.bfloat16, out_channels=16) | changes
    case = testing.Case("refused", (2, 8, 9, 9), options["out_channels"], groups=options["groups"], bn=False)
    arguments = testing.arguments(case, options["dtype"], "cuda", options["layout"])
    with pytest.raises(RuntimeError, match=re.escape(f"backend='native' cannot run this call:\n  native: {reason}")):
        atrous.conv_bn_act(**arguments, training=training, backend="native")
    for backend in ("library", "auto"):
        oracle.agree("conv_bn_act", backend, arguments | {"training": training})


def test_fp32_needs_tf32(monkeypatch):
    skip_without_kernels()
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    arguments = testing.arguments(testing.Case("fp32", (2, 8, 9, 9), 16), torch.float32, "cuda", NHWC)
    with pytest.raises(RuntimeError, match="native: input: expected tf32 .* got float32 with ieee precision"):
        atrous.conv_bn_act(**arguments, backend="native")


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_named_tile(case, tile, monkeypatch):
    """Every tile computes every case, whichever is predicted; a stem has its own tile."""
    skip_without_kernels()
    if case.name.startswith("a stem"):
        expected = pytest.raises(RuntimeError, match=f"{tile} cannot compute this convolution: .* 4 channels")
    elif tile not in launches.tiles():
        expected = pytest.raises(RuntimeError, match=f"{tile} cannot compute this convolution: .* built for 9.0a")
    else:
        expected = contextlib.nullcontext()
    with expected:
        launches.in_tile(tile, test_every_main_loop, case, torch.bfloat16, monkeypatch)
