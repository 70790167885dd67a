"""Addresses of masked loads that may become asynchronous copies lie inside a tensor, also those of masked lanes.

Compilers have let such a copy access an address that its mask leaves out (pytorch/pytorch#187081).
"""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

import triton.language as tl
from triton.runtime import interpreter
from triton_cases import INTERPRETING, LAYOUTS, POINTERS, convolution, interpret, strided_as

from atrous.core.spec import Epilogue
from atrous.triton_kernels.conv import forward as conv
from atrous.triton_kernels.conv import statistics
from atrous.triton_kernels.pointwise import backward as gradients
from atrous.triton_kernels.pointwise import reduction_plan

only_interpreted = pytest.mark.skipif(not INTERPRETING, reason="runs in the interpreter's process")


def test_under_the_interpreter(capsys):
    if not INTERPRETING:
        interpret(__file__, capsys=capsys, least=20, only="not interpreter")


@contextlib.contextmanager
def watched(*tensors: torch.Tensor):
    """Yields the addresses of masked fp16 loads (these tensors are fp16, workspaces are not); fails at one with an
    address outside the tensors."""
    builder = type(interpreter.interpreter_builder)
    load, loads = builder.create_masked_load, []

    def checked(self, pointers, mask, *others):
        if pointers.get_element_ty() == tl.float16:
            at = pointers.data
            inside = [((at >= t.data_ptr()) & (at < t.data_ptr() + 2 * t.numel())).all() for t in tensors]
            assert sum(inside) == 1, f"addresses from {at.min()} to {at.max()} are not those of one tensor"
            loads.append(at)
        return load(self, pointers, mask, *others)

    with mock.patch.object(builder, "create_masked_load", checked):
        yield loads


@only_interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels, groups", [(5, 1), (31, 1), (40, 1), (32, 1), (64, 2)])
@pytest.mark.parametrize("kernel", ["epilogue", "statistics"])
def test_a_dilated_convolution(layout, channels, groups, kernel):
    """Few channels; a partial last step, with and without whole vectors; whole steps; groups. The halo is wider than
    the image, and neither pixels nor output channels fill a tile."""
    call = convolution(
        (1, channels, 5, 6),
        6,
        (3, 3),
        torch.float16,
        layout,
        padding=(7, 8),
        dilation=(7, 8),
        groups=groups,
        bias=False,
    )
    weight = call.weight.contiguous(memory_format=torch.channels_last)
    call, memory_format = call._replace(weight=weight), LAYOUTS[layout]
    with watched(call.input, weight) as loads:
        if kernel == "statistics":
            waves = POINTERS._replace(waves=2)
            statistics.conv_statistics(*call[:4], memory_format=memory_format, config=waves)
        else:
            conv.conv_epilogue(*call, memory_format=memory_format, config=POINTERS)
    assert len(loads) >= 4


@only_interpreted
@pytest.mark.parametrize(
    "size, layout", [((3, 5, 7, 9), "NHWC"), ((3, 72, 3, 3), "NHWC"), ((3, 5, 8, 8), "NCHW"), ((3, 5, 7, 7), "NCHW")]
)
def test_reductions(size, layout):
    z = strided_as(torch.randn(size).half(), layout)
    grad = torch.randn_like(z)
    with watched(z, grad) as loads, mock.patch.object(reduction_plan, "REDUCTION_STEPS", 1):
        gradients.statistics(z)
        gradients.epilogue_reduce(grad, z, Epilogue(slope_kind="relu"))
    assert len(loads) >= 3  # z for the statistics, z and dy for the sums
