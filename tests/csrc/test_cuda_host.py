"""Tests the kernels of csrc/cuda, run as C++ on the CPU: values against the fp64 oracle, memory accesses, barriers."""

from __future__ import annotations

import contextlib
import itertools

import cuda_host
import pytest
import test_native
import test_native_training as training
import torch

from atrous import reference
from atrous.core.spec import Epilogue

pytestmark = pytest.mark.gate


@pytest.fixture(scope="session")  # a worker may return to this file, and a process can load the library only once
def ops(tmp_path_factory):
    torch.ops.load_library(cuda_host.built_once(tmp_path_factory))
    return torch.ops.atrous_host


@pytest.fixture(autouse=True)
def on_the_host(request, monkeypatch):
    """Makes the tests of the CPU primitives use these ops."""
    if "ops" in request.fixturenames:
        for module in (test_native, training):
            monkeypatch.setattr(module, "ops", request.getfixturevalue("ops"))


# Whole and partial vectors, planes smaller than a vector, one channel, no spatial dimensions, more channels than lanes,
# a single image whose planes are divided.
SHAPES = itertools.cycle(
    [(2, 1, 7, 7), (1, 3, 12, 8), (3, 8, 4, 4), (2, 31, 1, 1), (2, 9, 3, 5), (9, 1), (5, 40), (2, 3, 3, 2, 4), (3, 264)]
)
PLACES = itertools.cycle(("before", None, "after"))
NORMS = itertools.cycle(("batch", "running", "none", "batch"))


@pytest.mark.parametrize("dropout", (0.0, 0.3))
@pytest.mark.parametrize("dtype", training.DTYPES, ids=str)
@pytest.mark.parametrize("kind", training.KINDS)
def test_epilogue_and_gradient(ops, kind, dtype, dropout):
    """Each kind, dtype and layout; shapes, residuals and BatchNorms in turn."""
    for z in training.layouts((torch.randn(next(SHAPES)) * 2 + 1).to(dtype)):
        training.check(z, *training.case(z, kind, next(PLACES), next(NORMS), dropout))


@pytest.mark.parametrize("shape", [(2, 3, 41, 37), (1, 3, 32, 48), (70, 2, 13, 5), (90, 300)], ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_several_blocks(ops, dtype, shape):
    for z in training.layouts((torch.randn(shape) * 2 + 1).to(dtype)):
        training.check(z, *training.case(z, "tensor", "before", "batch", 0.0))
        training.test_statistics(dtype, shape)


@pytest.mark.parametrize("shape", [(2, 3, 13, 29), (70, 5)], ids=str)
def test_a_large_mean_costs_no_digits_of_the_variance(ops, shape):
    training.test_a_large_mean_costs_no_digits_of_the_variance(shape)


@pytest.mark.parametrize("kind", training.KINDS)
def test_special_values(ops, kind):
    training.test_special_values(kind, 0.5)
    training.test_one_value_that_is_not_finite_spoils_its_channel_alone(kind)


@pytest.mark.parametrize("dtype", training.DTYPES, ids=str)
def test_types(ops, poison, dtype):
    test_native.test_special_values(dtype)
    training.test_what_lies_outside_the_tensors_is_not_used(poison, dtype, (2, 5, 5, 7))
    training.test_of_nothing(dtype, (2, 0, 2, 2))


def test_vectors_draws_and_needs(ops):
    test_native.test_vectors_of_other_dtypes_and_strides()
    test_native.test_random_slopes_are_the_uniforms_of_the_reference(torch.channels_last)
    training.test_what_is_not_needed_is_empty_and_means_may_have_two_rows()


def test_the_bits_are_those_of_the_cpu(ops):
    """fma is explicit and nothing else is fused, so an epilogue has the same bits on every device."""
    for z in training.layouts(torch.randn(2, 24, 9, 7)):
        grad, means, e = training.case(z, "tensor", "before", "running", 0.3)
        assert torch.equal(ops._epilogue(z, *e), torch.ops.atrous._epilogue(z, *e))
        arguments = (grad, z, means, True, True, *e)
        for host, cpu in zip(ops._epilogue_backward(*arguments), torch.ops.atrous._epilogue_backward(*arguments)):
            assert torch.equal(host, cpu)


# in_channels, size, out_channels, kernel, stride, padding, dilation: stems (with merged kernel rows, of which every
# other one begins at 8 bytes in the last; or dilated and so without), split-K, and 1x1.
CONVOLUTIONS = [
    (3, (9, 8), 16, (7, 7), (2, 2), (3, 3), (1, 1)),
    (4, (7, 6), 8, (3, 2), (1, 3), (2, 1), (2, 1)),
    (3, (7, 9), 8, (3, 3), (1, 1), (2, 2), (1, 2)),
    (136, (5, 6), 24, (3, 3), (1, 1), (2, 4), (2, 4)),
    (16, (6, 5), 8, (1, 1), (2, 1), (0, 0), (1, 1)),
    (3, (9, 9), 8, (4, 4), (4, 4), (0, 0), (1, 1)),
]


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
def test_convolution_with_an_emulated_main_loop(ops, convolution, dtype):
    in_channels, size, out_channels, kernel, *geometry = convolution
    input = torch.randn(2, in_channels, *size).to(dtype, memory_format=torch.channels_last)
    weight = (torch.randn(out_channels, in_channels, *kernel) / (in_channels * kernel[0]) ** 0.5).to(dtype)
    bias = torch.randn(out_channels).to(dtype)
    for kind, place in (("relu", "after"), ("tensor", "before"), ("number", None)):
        wide = [value.double() for value in (input, weight, bias)]
        z = torch.conv2d(*wide, *geometry)
        e = test_native.arguments(z.to(dtype, memory_format=torch.channels_last), kind, place)
        y = ops._conv_epilogue(input, weight, bias, *geometry, 1, *e)
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
        eager = reference.epilogue(torch.conv2d(input, weight, bias, *geometry), e)
        test_native.assert_near(y, reference.epilogue(z, test_native.wide(e)), eager)


def test_the_name_of_a_tile(ops):
    """A named tile is used, or an error gives the reason; an unknown name changes nothing."""
    x, w = torch.randn(1, 64, 9, 9).to(memory_format=torch.channels_last), torch.randn(64, 64, 3, 3)
    call = lambda x: ops._conv_epilogue(x, w, None, (1, 1), (1, 1), (1, 1), 1, *Epilogue())  # noqa: E731
    y = call(x)
    with pytest.raises(RuntimeError, match="_conv_tile: expected one of wgmma-256x128, .*64x64, or nothing, got 512x5"):
        ops._conv_tile("512x512")
    torch.testing.assert_close(call(x), y, rtol=0, atol=0)
    try:
        ops._conv_tile("mma-128x64")
        torch.testing.assert_close(call(x), y)  # the reduction has other splits
        ops._conv_tile("wgmma-128x64")
        with pytest.raises(RuntimeError, match="wgmma-128x64 cannot compute this convolution: wgmma is used for"):
            call(x)
    finally:
        ops._conv_tile("")


# Changes to a convolution of 8 to 16 channels, and why no kernel computes it then.
REFUSED = [
    ({"layout": torch.contiguous_format}, "input: expected channels_last, got NCHW"),
    ({"groups": 2}, "groups: expected 1, got 2"),
    ({"dtype": torch.float64}, "input: expected float16, bfloat16 or float32, got float64"),
    ({"out": 12}, "weight: expected a multiple of 8 output channels, got 12"),
    ({"kernel": 33, "padding": 16}, "weight: expected a kernel of at most 32 x 32, got 33"),
    ({"groups": 4, "out": 12}, "groups: expected 1, got 4; weight: expected a multiple of 8 output channels, got 12"),
]


@pytest.mark.parametrize("changes, reasons", [({}, ""), ({"batch": 0, "groups": 2}, ""), *REFUSED])
def test_refusals(ops, changes, reasons):
    """`_conv_reasons` needs no tensor; `_conv_epilogue` raises the same."""
    case = dict(layout=torch.channels_last, groups=1, dtype=torch.float16, batch=1, out=16, kernel=3, padding=1)
    layout, groups, dtype, batch, out, kernel, padding = (case | changes).values()
    x = torch.randn(batch, 8, 5, 5).to(dtype, memory_format=layout)
    w, geometry = torch.randn(out, 8 // groups, kernel, kernel).to(dtype), ((1, 1), (padding, padding), (1, 1), groups)
    assert ops._conv_reasons(dtype, layout == torch.channels_last, x.shape, w.shape, *geometry) == reasons
    expected = pytest.raises(RuntimeError, match=f"on CUDA: {reasons}") if reasons else contextlib.nullcontext()
    with expected:
        assert ops._conv_epilogue(x, w, None, *geometry, *Epilogue()).shape == (batch, out, 5, 5)


def test_a_convolution_whose_epilogue_draws(ops):
    """No kernel of a convolution draws: the epilogue is a second launch."""
    x = torch.randn(2, 8, 5, 4).to(memory_format=torch.channels_last)
    call = x, torch.randn(16, 8, 3, 3), torch.randn(16), (1, 1), (1, 1), (1, 1), 1
    z = ops._conv_epilogue(*call, *Epilogue())
    drawn = test_native.arguments(z, "random", "before")
    for e in (drawn, drawn._replace(slope_kind="relu", dropout=0.3)):
        assert torch.equal(ops._conv_epilogue(*call, *e), ops._epilogue(z, *e))


@pytest.mark.parametrize("channels", [3, 16])
def test_tensors_that_the_kernels_cannot_read_are_copied(ops, poison, channels):
    """Tensors whose addresses are no multiples of 16 bytes, and an NCHW input of a channels_last weight."""
    nhwc = dict(memory_format=torch.channels_last)
    x, w = torch.randn(2, channels, 5, 4).half().to(**nhwc), torch.randn(8, channels, 3, 3).half().to(**nhwc)
    e = test_native.arguments(torch.randn(2, 8, 5, 4).half().to(**nhwc), "relu", "before")
    call = lambda x, w, e: ops._conv_epilogue(x, w, None, (1, 1), (1, 1), (1, 1), 1, *e)  # noqa: E731
    y = call(x, w, e)
    assert torch.equal(call(poison(x), poison(w), e._replace(residual=poison(e.residual))), y)
    assert torch.equal(call(x.contiguous(), w, e), y) and y.is_contiguous(**nhwc)


def test_errors(ops):
    z = torch.randn(2, 4, 5, 6)
    with pytest.raises(RuntimeError, match="grad: expected dtype Float like z, got Double"):
        ops._epilogue_reduce(z.double(), z, *Epilogue())
    with pytest.raises(RuntimeError, match="z: .*strides"):
        ops._statistics(z[..., ::2])


# Planted faults: sanitizer, header, unit that includes it, right text, wrong text, op, and the sanitizer's report.
FAULTS = [
    ("address", "vector_access.cuh", "epilogue.cu", "if (i < count) vector.at[i] = from[i];", "vector.at[i] = from[i];",
     "_epilogue", "heap-buffer-overflow"),
    ("thread", "reduction.cuh", "statistics.cu", "    __syncthreads();\n    if (member >= half) continue;",
     "    if (member >= half) continue;", "_statistics", "data race"),
]  # fmt: skip


@pytest.mark.drawn(2)
@pytest.mark.parametrize("sanitizer, header, unit, right, wrong, op, report", FAULTS, ids=lambda value: str(value)[:12])
def test_sanitizers(tmp_path, sanitizer, header, unit, right, wrong, op, report):
    """The sanitizers report nothing on the kernels, and detect an access without its mask and a missing barrier."""
    (tmp_path / "clean").mkdir()
    clean = cuda_host.build(tmp_path / "clean", sanitizer)
    passed = cuda_host.run(clean, sanitizer)
    assert passed.returncode == 0 and passed.stdout == "all launched\n", passed.stdout + passed.stderr
    faulty = cuda_host.planted(clean, tmp_path / "faulty", sanitizer, header, unit, right, wrong)
    caught = cuda_host.run(faulty, sanitizer, op)
    assert caught.returncode != 0 and report in caught.stderr, caught.stdout + caught.stderr
