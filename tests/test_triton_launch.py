"""What a call compiles, by Triton's own path from arguments to code, with a driver that has no card: nothing runs.

The compile gate builds its variants by hand; here Triton itself reads the launch: tuples of constants, descriptors,
absent pointers, sizes that must not become part of the code.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")

import conv_gate  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from atrous.triton_kernels import (  # noqa: E402
    channel_statistics,
    channel_sums,
    configs,
    conv,
    describe,
    gradients,
    pointwise,
    statistics,
)

if not isinstance(conv.conv_epilogue_kernel, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET=1: there is nothing to compile", allow_module_level=True)

CHIP = 90


class Driver:
    """As much of a card as the compiler asks for."""

    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", CHIP, 32))


@pytest.fixture
def compiled():
    """compiled[i] is what the i-th launch compiled, in the order of the launches; one entry a distinct code."""
    found = []

    def compile_only(plan, device, tensors, numbers=(), descriptors=()):
        arguments = (*descriptors, *tensors, *numbers, *plan.sizes)
        made = plan.kernel.warmup(*arguments, grid=plan.grid, **plan.constants)
        found.extend([] if any(made is other for other in found) else [made])

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(driver, "_active", Driver()))
        stack.enter_context(mock.patch.object(describe, "chip", lambda device: (CHIP, 132)))
        for module in (conv, statistics, pointwise, channel_statistics, channel_sums, gradients):
            stack.enter_context(mock.patch.multiple(module, launch=compile_only, check_device=mock.Mock()))
        yield found


def call(layer, batch=2, config=None, residual=True, dtype=torch.bfloat16):
    x, w, size, geometry = conv_gate._tensors(layer._replace(batch=batch), dtype)
    x, w = torch.empty_like(x[0], device="cpu"), torch.empty_like(w, device="cpu")
    vector = torch.ones(layer.out_channels)
    added = torch.empty(size, dtype=dtype).contiguous(memory_format=layer.memory_format) if residual else None
    return conv.conv_epilogue(
        x, w, None, *geometry, *[vector] * 4, 1e-5, "tensor", 0.0, 0.0, vector, None, added, False,
        memory_format=layer.memory_format, config=config,
    )  # fmt: skip


@pytest.mark.parametrize("name", conv_gate.LAYERS | conv_gate.DEPTHWISE)
def test_every_layer(compiled, name):
    call((conv_gate.LAYERS | conv_gate.DEPTHWISE)[name])
    call((conv_gate.LAYERS | conv_gate.DEPTHWISE)[name], residual=False)
    assert [made.metadata.target.arch for made in compiled] == [CHIP] * 2
    assert all(len(made.asm["cubin"]) > 0 for made in compiled)


def test_splits_and_statistics(compiled):
    layer = conv_gate.LAYERS["dilated"]
    call(layer, config=configs.CONV[0]._replace(splits=4))
    x, w, _, geometry = conv_gate._tensors(layer, torch.bfloat16)
    x, w = torch.empty_like(x[0], device="cpu"), torch.empty_like(w, device="cpu")
    statistics.conv_statistics(x, w, None, *geometry, memory_format=layer.memory_format)
    assert len(compiled) == 2


def test_the_epilogue_alone(compiled):
    pointwise.epilogue(torch.empty(2, 8, 4, 4), *[torch.ones(8)] * 4, 1e-5, "relu", 0.0, 0.0, None, None, None, False)
    assert len(compiled) == 1


def train(z):
    """The four kernels of a layer that trains, on a tensor of 8 channels."""
    vectors, z = [torch.ones(8)] * 4, z.contiguous(memory_format=torch.channels_last)
    arguments = (*vectors, 1e-5, "random", 0.1, 0.3, None, torch.zeros(2, dtype=torch.int64), None, False, 0.5)
    pointwise.epilogue(z, *arguments)
    gradients.statistics(z)
    gradients.epilogue_reduce(z, z, *arguments)
    gradients.epilogue_backward(z, z, torch.ones(2, 8), True, False, *arguments)


def test_sizes_do_not_recompile_what_trains(compiled):
    for batch, size in ((1, 9), (2, 16), (3, 17), (16, 32)):
        train(torch.empty(batch, 8, size, size + 1))
    assert len(compiled) == 4


def test_sizes_do_not_recompile(compiled):
    """1, which Triton would make a constant, and multiples of 16, which it would build on, are sizes as others are."""
    layer = conv_gate.LAYERS["dilated"]
    pointers = next(config for config in configs.CONV if not config.descriptors)
    for batch, size in ((1, 9), (2, 16), (3, 17), (16, 32), (5, 1)):
        call(layer._replace(size=(size + 4, size), padding=(0, 2)), batch, pointers)
    assert len(compiled) == 1


def test_descriptors_compile_once_a_box(compiled):
    layer, config = conv_gate.LAYERS["dilated"], configs.CONV[1]
    assert config.descriptors
    for batch in (1, 2, 3, 8, 32, 33, 128):
        for size in (7, 14, 28, 30, 56):
            call(layer._replace(size=(size, size)), batch, config)
    assert 1 < len(compiled) <= len(configs.BOXES[config.block_n])
