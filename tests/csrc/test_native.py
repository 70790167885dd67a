"""Tests the primitives of libatrous.so against the fp64 oracle, on the CPU and, with --device cuda, on a GPU."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from native_cases import CASES, KINDS, LAYOUTS, PLACES, SHAPES, arguments, assert_near
from oracle import wide
from parameters import DTYPES, HALVES
from torch import Tensor

from atrous import reference
from atrous.backends import selection
from atrous.backends.prepack import PrepackedWeights
from atrous.core.spec import Epilogue

reasons = selection.reasons("native", torch.empty(0))
pytestmark = pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))
on_cpu = pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="only the CPU has this")
ops = torch.ops.atrous


def assert_same(result: Tensor, expected: Tensor) -> None:
    """Equal, NaN and the sign of zero included."""
    assert torch.equal(result.isnan(), expected.isnan())
    result, expected = result.nan_to_num(7.0, torch.inf, -torch.inf), expected.nan_to_num(7.0, torch.inf, -torch.inf)
    assert torch.equal(result, expected) and torch.equal(result.signbit(), expected.signbit())


def check_epilogue(z: Tensor, e: Epilogue) -> None:
    original = z.clone()
    y = ops._epilogue(z, *e)
    assert y.shape == z.shape and y.stride() == z.stride() and y.dtype == z.dtype
    assert_near(y, reference.epilogue(z.double(), wide(e)), reference.epilogue(z, e))
    assert torch.equal(z, original) and torch.equal(y, ops._epilogue(z, *e))


@pytest.mark.parametrize("layout", LAYOUTS, ids=("nchw", "nhwc"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_epilogue(kind, dtype, layout):
    for shape, place in itertools.product(SHAPES, PLACES):
        z = torch.randn(shape, dtype=dtype).contiguous(memory_format=layout)
        for norm in (True, False):
            check_epilogue(z, arguments(z, kind, place, norm))


@pytest.mark.parametrize("shape", [(5, 3), (4, 64), (2, 3, 5), (2, 3, 2, 3, 4), (0, 3, 2, 2), (2, 0, 2, 2)], ids=str)
def test_epilogue_of_other_ranks_and_of_nothing(shape):
    z = torch.randn(shape)
    check_epilogue(z, arguments(z, "number", "before")) if z.numel() else None
    assert ops._epilogue(z, *arguments(z, "random", "after")).shape == z.shape


def test_vectors_of_other_dtypes_and_strides():
    z = torch.randn(2, 6, 3, 3, dtype=torch.bfloat16)
    e = arguments(z, "number", None, dtype=torch.float32)
    expected = reference.epilogue(z.double(), wide(e)).bfloat16()
    assert torch.equal(ops._epilogue(z, *e), expected)
    strided = [torch.stack([v, v], 1)[:, 0] if isinstance(v, Tensor) else v for v in e]
    assert torch.equal(ops._epilogue(z, *strided), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=("nchw", "nhwc"))
def test_random_slopes_are_the_uniforms_of_the_reference(layout):
    z = torch.full((3, 5, 17, 19), -1.0).contiguous(memory_format=layout)
    for seed in torch.tensor([[0, 0], [1, 2**40 + 3], [-1, -2]]):
        e = Epilogue(slope_kind="random", slope_value=0.0, slope_upper=1.0, seed=seed)
        assert torch.equal(-ops._epilogue(z, *e), reference.uniform(seed, tuple(z.shape)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(dtype):
    values = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 6e-8, -3e-6, 65504.0, 1.0, -2.0, 3.14159]
    z = torch.tensor(values, dtype=dtype).repeat(5).reshape(1, 1, 5, 11)
    for slope in (1.0, 0.125, -2.0):  # products that are exact but for the last rounding
        expected = torch.where(z > 0, z.double(), slope * z.double()).to(dtype)
        assert_same(ops._epilogue(z, *Epilogue(slope_value=slope)), expected)
    assert_same(ops._epilogue(z, *Epilogue(slope_kind="relu")), F.relu(z))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_value_of_a_storage_type_is_read_and_rounded_as_torch_does(dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(1, 1, -1)
    assert_same(ops._epilogue(every, *Epilogue()), every)
    for mean in (1.0, 2.0**-12, 6e-8, 1e3, 6e4):
        e = Epilogue(mean=torch.tensor([mean]), var=torch.ones(1), eps=0.0)
        assert_same(ops._epilogue(every, *e), (every.float() - torch.tensor(mean)).to(dtype))


@on_cpu  # a GPU's kernels are in test_cuda_conv.py
@pytest.mark.parametrize("kind, place", CASES)
def test_conv_epilogue(kind, place):
    for layout, dtype in itertools.product(LAYOUTS, (torch.float32, torch.float64, torch.bfloat16)):
        input = torch.randn(2, 6, 9, 11, dtype=dtype).contiguous(memory_format=layout)
        weight, bias = torch.randn(4, 3, 3, 3, dtype=dtype), torch.randn(4, dtype=dtype)
        geometry = ((2, 1), (1, 2), (1, 2), 2)
        z = F.conv2d(input, weight, bias, *geometry)
        e = arguments(z, kind, place)
        y = ops._conv_epilogue(input, weight, bias, *geometry, *e)
        assert y.stride() == z.stride() and y.dtype == dtype
        assert_near(y, reference.epilogue(z.double(), wide(e)), reference.epilogue(z, e))


@on_cpu
def test_conv_epilogue_is_not_recorded():
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.no_grad():
        y = ops._conv_epilogue(torch.randn(1, 3, 5, 5), weight, None, (1, 1), (1, 1), (1, 1), 1, *Epilogue())
    assert not y.requires_grad and torch.is_grad_enabled() is True


PLAIN = Epilogue()


@on_cpu
@pytest.mark.parametrize("kind", ["tensor", "random"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=("nchw", "nhwc"))
def test_the_number_of_threads_does_not_change_a_bit(layout, kind):
    """A thread's part begins and ends anywhere, in channels_last in the middle of a pixel's channels."""
    z = torch.randn(3, 71, 23, 31).contiguous(memory_format=layout)
    e = arguments(z, kind, "before")
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops._epilogue(z, *e))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_shift_without_batchnorm(dtype):
    """beta alone is added to each channel, as a convolution's bias is; -0.0 keeps its sign."""
    z, beta = torch.randn(2, 4, 5, 6, dtype=dtype), torch.tensor([1.5, -2.0, 0.0, -0.0], dtype=dtype)
    z[:, 3] = -0.0
    y = ops._epilogue(z, *Epilogue(beta=beta))
    expected = z + beta[:, None, None]
    assert torch.equal(y, expected) and torch.equal(y.signbit(), expected.signbit())


Z = torch.randn(2, 4, 5, 6)
BAD_EPILOGUES = {
    "slope_kind: .*'selu'": Epilogue(slope_kind="selu"),
    r"slope: expected a tensor .*None": Epilogue(slope_kind="tensor"),
    r"slope: expected shape \[4\] or \[1\], got \[3\]": Epilogue(slope_kind="tensor", slope=torch.ones(3)),
    r"seed: expected a tensor .*None": Epilogue(slope_kind="random"),
    r"seed: expected shape \[2\], int64.*\[3\]": Epilogue(slope_kind="random", seed=torch.zeros(3, dtype=torch.int64)),
    "mean and var: .* only mean": Epilogue(mean=torch.zeros(4)),
    "gamma: expected None without mean": Epilogue(gamma=torch.ones(4)),
    r"var: expected shape \[4\], got \[5\]": Epilogue(mean=torch.zeros(4), var=torch.ones(5)),
    r"gamma: .*dtype.*Long": Epilogue(torch.zeros(4), torch.ones(4), torch.ones(4, dtype=torch.int64)),
    r"residual: expected shape \[2, 4, 5, 6\], got \[1, 4, 1, 1\]": Epilogue(residual=torch.ones(1, 4, 1, 1)),
    r"residual: expected dtype Float .*BFloat16": Epilogue(residual=Z.bfloat16()),
}


@pytest.mark.parametrize("message", BAD_EPILOGUES)
def test_errors_of_the_epilogue(message):
    with pytest.raises(RuntimeError, match=message):
        ops._epilogue(Z, *BAD_EPILOGUES[message])


@pytest.mark.parametrize(
    "z, message",
    [
        (torch.randn(3), "z: expected at least 2-D"),
        (Z[..., ::2], "z: expected contiguous or channels_last strides"),
        (Z[:1].expand(2, 4, 5, 6), "z: expected contiguous or channels_last strides"),
        (Z.int(), "z: expected dtype float32.*Int"),
    ],
)
def test_errors_of_z(z, message):
    with pytest.raises(RuntimeError, match=message):
        ops._epilogue(z, *Epilogue())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input": Z[0]}, "input: expected 4-D"),
        ({"input": Z.int()}, "input: expected dtype .*Int"),
        ({"weight": torch.randn(6, 3, 3, 3)}, r"weight: expected shape .*C = 4.*got \[6, 3, 3, 3\]"),
        ({"weight": torch.randn(6, 4, 3, 3, dtype=torch.float64)}, "weight: expected dtype Float .*Double"),
        ({"bias": torch.zeros(3)}, r"bias: expected shape \[6\], got \[3\]"),
        ({"bias": torch.zeros(6).bfloat16()}, "bias: expected dtype Float .*BFloat16"),
        ({"stride": (0, 1)}, r"stride: .*\[0, 1\]"),
        ({"padding": (0, -1)}, r"padding: .*\[0, -1\]"),
        ({"dilation": (9, 9)}, "input: expected a padded size .*19, got 7"),
        ({"groups": 0}, "groups: .*0"),
        ({"groups": 3}, "weight: expected shape .*groups = 3"),
    ],
)
def test_errors_of_the_convolution(change, message):
    geometry = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    good = dict(input=Z, weight=torch.randn(6, 4, 3, 3), bias=None, **geometry)
    with pytest.raises(RuntimeError, match=message):
        ops._conv_epilogue(*(good | change).values(), *PLAIN)


def test_prepacked_weights_keep_their_weight_alive_and_store_nothing_under_capture():
    """Ids and addresses are reused once a weight is gone; a weight packed under capture has no values yet."""
    calls, backend = [], mock.Mock()
    backend.name, backend.pack_key = "fake", lambda *a: ()
    backend.pack = lambda input, weight, spec: calls.append(1) or weight.clone()
    prepacked, x, weight = PrepackedWeights(), torch.zeros(1), torch.ones(3)
    prepacked._packed(backend, x, weight, None)
    ((stored, _),) = prepacked.entries.values()
    assert stored is weight
    weight.add_(1)
    assert torch.equal(prepacked._packed(backend, x, weight, None), weight) and len(prepacked.entries) == 1
    other = torch.ones(3)
    with mock.patch("atrous.backends.prepack.triton_impl.capturing", lambda x: True):
        prepacked._packed(backend, x, other, None)
        prepacked._packed(backend, x, other, None)
    assert len(calls) == 4 and all(stored is not other for stored, _ in prepacked.entries.values())
