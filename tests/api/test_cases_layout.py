"""Edge cases of layout: NHWC in, NHWC out; views of any strides; odd sizes; no access outside a tensor."""

from __future__ import annotations

import itertools

import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import agree, conv_arguments, layout
from torch import nn

import atrous
from atrous import testing

NCHW, NHWC = torch.contiguous_format, torch.channels_last
SIZES = [(1, 1), (7, 7), (13, 29)]
CHANNELS = [1, 3, 7, 31, 65]


def in_formats(arguments, **formats):
    return arguments | {name: arguments[name].contiguous(memory_format=format) for name, format in formats.items()}


@pytest.mark.parametrize("residual", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("weight", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("input", [NCHW, NHWC], ids=str)
def test_formats(backend, input, weight, residual):
    """The output is NHWC if input or weight is, as in eager; the residual's layout does not matter."""
    arguments = conv_arguments(channels=8, out=16, padding=1, slope=torch.rand(16), residual=torch.randn(2, 16, 9, 8))
    y = agree("conv_bn_act", backend, in_formats(arguments, input=input, weight=weight, residual=residual))
    assert y.is_contiguous(memory_format=NHWC if NHWC in (input, weight) else NCHW)


@pytest.mark.parametrize("input", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("other", [NCHW, NHWC], ids=str)
def test_formats_without_a_convolution(backend, input, other):
    pair = in_formats(dict(input=torch.randn(2, 6, 7, 5), other=torch.randn(2, 6, 7, 5)), input=input, other=other)
    agree("add_act", backend, pair | dict(slope="relu"))
    agree(
        "bn_act",
        backend,
        dict(
            input=pair["input"],
            residual=pair["other"],
            running_mean=torch.zeros(6),
            running_var=torch.ones(6),
            slope=torch.rand(6),
        ),
    )


@pytest.mark.parametrize("format", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_odd_sizes(backend, channels, size, format, poison):
    """The tensors lie in poisoned memory: a vector load beyond them would read NaN."""
    arguments = conv_arguments(
        channels=channels,
        out=channels,
        size=size,
        padding=1,
        slope=torch.rand(channels),
        residual=torch.randn(2, channels, *size),
    )
    arguments = in_formats(arguments, input=format, weight=format, residual=format)
    arguments = {name: poison(value) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    y = agree("conv_bn_act", backend, arguments)
    norm = dict(
        running_mean=arguments["running_mean"],
        running_var=arguments["running_var"],
        weight=arguments["bn_weight"],
        bias=arguments["bn_bias"],
        slope=arguments["slope"],
    )
    agree("bn_act", backend, dict(input=poison(y), residual=arguments["residual"], **norm))
    agree("add_act", backend, dict(input=poison(y), other=arguments["residual"], slope=arguments["slope"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_odd_channels_in_other_types(backend, channels, dtype, poison):
    x, residual = (poison(torch.randn(2, channels, 13, 29).to(dtype).contiguous(memory_format=NHWC)) for _ in range(2))
    agree("add_act", backend, dict(input=x, other=residual, slope=torch.rand(channels).to(dtype)))
    agree(
        "bn_act",
        backend,
        dict(
            input=x,
            running_mean=torch.zeros(channels, dtype=dtype),
            residual=residual,
            running_var=torch.ones(channels, dtype=dtype),
            slope="relu",
        ),
    )


VIEWS = {
    "sliced channels": lambda: torch.randn(2, 8, 9, 8)[:, ::2],
    "sliced rows": lambda: torch.randn(2, 4, 18, 8)[:, :, ::2],
    "sliced columns": lambda: torch.randn(2, 4, 9, 16)[..., 1::2],
    "sliced batch": lambda: torch.randn(4, 4, 9, 8)[1::2],
    "sliced channels of NHWC": lambda: torch.randn(2, 8, 9, 8).contiguous(memory_format=NHWC)[:, 3:7],
    "cropped": lambda: torch.randn(2, 4, 12, 12)[:, :, 1:10, 2:10],
    "cropped NHWC": lambda: torch.randn(2, 4, 12, 12).contiguous(memory_format=NHWC)[:, :, 1:10, 2:10],
    "height and width swapped": lambda: torch.randn(2, 4, 8, 9).transpose(2, 3),
    "batch and channels swapped": lambda: torch.randn(4, 2, 9, 8).transpose(0, 1),
    "one image for all": lambda: torch.randn(1, 4, 9, 8).expand(2, 4, 9, 8),
    "one channel for all": lambda: torch.randn(2, 1, 9, 8).expand(2, 4, 9, 8),
    "one number for all": lambda: torch.randn(()).expand(2, 4, 9, 8),
    "storage offset": lambda: torch.randn(2 * 4 * 9 * 8 + 3)[3:].view(2, 4, 9, 8),
    "flipped twice": lambda: torch.randn(2, 4, 9, 8).flip(3).flip(3),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_a_library_that_gives_another_order(monkeypatch, dtype):
    """A library that returns NCHW (as on a GPU in fp64 without cuDNN): an NHWC residual is accepted, and y is NHWC."""
    conv2d = torch.conv2d
    monkeypatch.setattr(torch, "conv2d", lambda *arguments, **named: conv2d(*arguments, **named).contiguous())
    arguments = testing.arguments(testing.CASES[1], dtype, memory_format=torch.channels_last)
    y = atrous.conv_bn_act(**arguments, backend="library")
    monkeypatch.undo()
    assert y.is_contiguous(memory_format=torch.channels_last)
    testing.assert_close(y, arguments)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views(backend, view):
    arguments = conv_arguments(padding=1, slope=0.1)
    agree("conv_bn_act", backend, arguments | dict(input=view()))
    agree("conv_bn_act", backend, conv_arguments(out=4, padding=1, slope=torch.rand(4), residual=view()))
    agree("bn_act", backend, dict(input=view(), running_mean=torch.zeros(4), running_var=torch.ones(4), slope="relu"))
    agree("add_act", backend, dict(input=torch.randn(2, 4, 9, 8), other=view(), slope=torch.rand(4)))
    agree("add_act", backend, dict(input=view(), other=torch.randn(2, 4, 9, 8), slope=0.1), same_layout=False)


def test_views_of_the_vectors_and_the_weight(backend):
    arguments = conv_arguments(channels=6, out=6, padding=1)
    strided = {name: torch.rand(18)[1::3] for name in ("running_mean", "running_var", "bn_weight", "bn_bias", "bias")}
    agree("conv_bn_act", backend, arguments | strided | dict(slope=torch.rand(12)[::2]))
    agree(
        "conv_bn_act",
        backend,
        arguments | dict(weight=arguments["weight"].transpose(0, 1), slope=torch.rand(1).expand(6)),
    )
    agree(
        "conv_bn_act",
        backend,
        arguments | dict(weight=torch.randn(6, 6, 6, 6)[:, :, ::2, 1:4], slope=torch.rand(2)[1:]),
    )


def test_the_input_is_its_own_residual(backend):
    arguments = conv_arguments(channels=4, out=4, padding=1, slope="relu")
    agree("conv_bn_act", backend, arguments | dict(residual=arguments["input"]))
    agree("add_act", backend, dict(input=arguments["input"], other=arguments["input"], slope=0.5))


@torch.no_grad()
def test_a_channels_last_model(backend):
    plain = oracle.make_plain(nn.PReLU(6)).eval().to(memory_format=NHWC)
    ours = oracle.ours_of(plain, backend)
    x = torch.randn(2, 4, 13, 29)
    for input in (x, x.contiguous(memory_format=NHWC)):
        y, eager = ours(input), plain(input)
        testing.assert_tensor(y, eager, oracle.wide(plain)(input.double()))
        assert layout(y) == layout(eager)


def test_the_result_owns_its_memory(backend):
    """Also if the operator is the identity: no activation, no effect of the BatchNorm, a residual of zero."""
    x, mean, var = torch.randn(2, 4, 5, 5), torch.zeros(4), torch.ones(4)
    for y in (
        atrous.add_act(x, torch.zeros_like(x), backend=backend),
        atrous.bn_act(x, mean, var, eps=1e-30, backend=backend),
    ):
        assert torch.equal(y, x) and y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize("size", [(2, 1, 8, 8), (2, 5, 1, 1), (1, 1, 1, 1), (2, 4, 1, 6), (2, 4, 6, 7)], ids=str)
@pytest.mark.parametrize("out, kernel", [(5, (3, 3)), (1, (3, 3)), (6, (1, 1))], ids=str)
@pytest.mark.parametrize("formats", list(itertools.product((NCHW, NHWC), repeat=2)), ids=str)
def test_layouts_that_one_tensor_has_at_once(backend, size, out, kernel, formats):
    """One channel or one pixel: the strides alone decide the layout, as in eager."""
    x = torch.randn(size).to(memory_format=formats[0])
    w = torch.randn(out, size[1], *kernel).to(memory_format=formats[1])
    padding = (kernel[0] // 2, kernel[1] // 2)
    z = torch.conv2d(x, w, None, padding=padding)
    for residual in (None, torch.randn_like(z)):
        y = atrous.conv_bn_act(x, w, padding=padding, slope="relu", residual=residual, backend=backend)
        expected = (z if residual is None else z + residual).relu()
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        assert y.stride() == z.stride()


@pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="torch's layouts on a CPU")
@pytest.mark.parametrize("backend", ["library", "native"])
@pytest.mark.parametrize("slope", [1.0, "relu", (0.1, 0.3)], ids=str)
@pytest.mark.parametrize("kernel, padding", [(1, (0, 1)), (3, 1)], ids=["1x1", "3x3"])
def test_depthwise_convolutions_of_one_pixel(backend, slope, kernel, padding):
    """torch gives some of them another layout than their input has."""
    x, w = torch.randn(2, 1, 1, 8).permute(0, 3, 1, 2), torch.randn(8, 1, kernel, kernel)
    plain = torch.conv2d(x, w, None, 1, padding, 1, 8)
    y = atrous.conv_bn_act(x, w, padding=padding, groups=8, slope=slope, backend=backend)
    assert y.stride() == plain.stride()
    torch.testing.assert_close(y.relu(), plain.relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="torch's convolution on a CPU")
@pytest.mark.parametrize("backend", ["library", "native"])
@pytest.mark.parametrize("permuted", list(itertools.product((False, True), repeat=2)), ids=str)
@pytest.mark.parametrize("kernel, stride", [(3, (1, 2)), (1, 1)], ids=["3x3", "1x1"])
def test_one_channel_in_fp16(backend, permuted, kernel, stride):
    """A CPU computes it in fp32: there torch's convolution into one column is wrong with the strides of NHWC."""
    x, w = (
        torch.randn(n, h, width, 1).half().permute(0, 3, 1, 2) if nhwc else torch.randn(n, 1, h, width).half()
        for nhwc, (n, h, width) in zip(permuted, ((2, 3, 2), (8, kernel, kernel)))
    )  # fmt: skip
    plain = torch.conv2d(x, w, None, stride, kernel // 2)
    exact = torch.conv2d(x.double(), w.double(), None, stride, kernel // 2)
    y = atrous.conv_bn_act(x, w, stride=stride, padding=kernel // 2, backend=backend)
    torch.testing.assert_close(y.double(), exact, rtol=2e-3, atol=2e-3)
    assert layout(y) == layout(plain)


@pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="a difference on a CPU")
def test_depthwise_convolutions_of_one_pixel_in_fp16():
    """torch convolves such maps channel by channel, and loses their layout: docs/differences.md."""
    x, w = torch.randn(2, 1, 1, 8).half().permute(0, 3, 1, 2), torch.randn(8, 1, 3, 3).half()
    plain, y = F.conv2d(x, w, None, 1, 1, 1, 8), atrous.conv_bn_act(x, w, padding=1, groups=8)
    torch.testing.assert_close(y, plain, rtol=2e-3, atol=2e-3)
    assert plain.stride() == (8, 1, 1, 1) and y.stride() == (8, 1, 8, 8)
