"""The Triton epilogue against the fp64 oracle, on a GPU or on the CPU under Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, so `test_under_the_interpreter` runs this file again in a process
that has it set. bf16 is left out there: the interpreter computes it wrong.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from atrous import reference  # noqa: E402
from atrous.triton_kernels import launch
from atrous.triton_kernels.pointwise import (
    configs,  # noqa: E402
    operands,
)
from atrous.triton_kernels.pointwise import forward as pointwise

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETING or not CUDA else "cuda"
DTYPES = (torch.float16, torch.float32, torch.float64) if INTERPRETING else operands.DTYPES
SLOPE_KINDS = ("relu", "number", "tensor", "random")
RESIDUALS = ("none", "before", "after")
LAYOUTS = ("NCHW", "NHWC")


def variants(slopes):
    """(dtype, slope, residual): every combination. When compiled, fp16 and fp64, which only load, store and compute as
    bf16 and fp32 do, take one residual for each slope: a third of the kernels."""
    whole = DTYPES if INTERPRETING else (torch.bfloat16, torch.float32)
    return [
        (dtype, slope, residual)
        for dtype in DTYPES
        for i, slope in enumerate(slopes)
        for j, residual in enumerate(RESIDUALS)
        if dtype in whole or (i + j) % len(RESIDUALS) == 0
    ]


def on_device(test):
    """Runs the test under the interpreter and on a GPU."""
    return test if INTERPRETING else on_gpu(test)


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not CUDA or INTERPRETING, reason="needs an NVIDIA GPU")(test))


@pytest.mark.skipif(INTERPRETING, reason="already in the interpreter's process")
def test_under_the_interpreter(capsys):
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu"]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    last = run.stdout.strip().rpartition("\n")[2]
    with capsys.disabled():
        print(f" [interpreter: {last}]", end=" ")
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"(\d+) passed", last)[1]) > 300


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """Fills outputs with NaN, so that what the kernel does not write is found."""
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))


def arguments(
    shape, dtype, layout="NCHW", slope_kind="tensor", residual="before", norm=True, vectors=None, shared=False,
    dropout=0.0,
):  # fmt: skip
    """z and the other arguments of `pointwise.epilogue`: slopes below 0 and above 1, gammas of both signs."""
    place = {"device": DEVICE, "dtype": vectors or (torch.float64 if dtype == torch.float64 else torch.float32)}
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape)) if layout == "NHWC" else None
    z = torch.randn(shape, device=DEVICE, dtype=torch.float64).to(dtype, memory_format=order or torch.contiguous_format)
    channels = shape[1]
    mean, var, gamma, beta = (torch.randn(channels, **place) for _ in range(4))
    slope = torch.randn(1 if shared else channels, **place)
    bn = (mean, var.abs() + 0.1, gamma, beta) if norm else (None,) * 4
    seed = torch.tensor([0x1234_5678_9ABC_DEF0, (1 << 40) + 4], device=DEVICE)
    added = None if residual == "none" else torch.randn_like(z)
    return z, *bn, 1e-3, slope_kind, -0.125, 0.5, slope, seed, added, residual == "after", dropout


def double(arguments):
    return [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]


def budget(arguments, truth):
    """Half a unit of the result's dtype, and 8 units of the arithmetic's dtype on the sum of the added magnitudes."""
    z, mean, var, gamma, beta, eps, _, _, _, slope, _, residual, _, dropout = double(arguments)
    size = z.abs()
    if mean is not None:
        column = (1, -1) + (1,) * (z.dim() - 2)
        scale = ((1 if gamma is None else gamma) / (var + eps).sqrt()).abs().view(column)
        size = (size + mean.abs().view(column)) * scale + (0 if beta is None else beta.abs().view(column))
    size = (size + (0 if residual is None else residual.abs())) * max(1.0, slope.abs().max().item())
    size = size / (1 - dropout)
    dtype = arguments[0].dtype
    storage, arithmetic = torch.finfo(dtype), torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    return 0.5 * storage.eps * truth.abs() + 8 * arithmetic.eps * size + storage.smallest_normal * storage.eps


def check(arguments):
    """Returns y after checking its error against the oracle, its strides, and that nothing was mutated."""
    z, before = arguments[0], [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    y = pointwise.epilogue(*arguments)
    assert (y.shape, y.dtype, y.device, y.stride()) == (z.shape, z.dtype, z.device, z.stride())
    truth = reference.epilogue(*double(arguments))
    over = (y.double() - truth).abs() - budget(arguments, truth)
    assert not over.isnan().any() and (over <= 0).all(), f"{over.max().item()} over its budget"
    assert all(torch.equal(a, b) for a, b in zip(arguments, before) if isinstance(a, torch.Tensor))
    return y


@on_device
@pytest.mark.parametrize("dtype, slope_kind, residual", variants(SLOPE_KINDS), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 16, 4, 8), (1, 2, 33, 33)], ids=str)
def test_every_variant(shape, layout, dtype, slope_kind, residual):
    check(arguments(shape, dtype, layout, slope_kind, residual))


@on_device
@pytest.mark.parametrize("slope_kind", SLOPE_KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_call_gives_the_same_bits(slope_kind, layout):
    given = arguments((2, 33, 5, 9), torch.float16, layout, slope_kind)
    assert torch.equal(check(given), pointwise.epilogue(*given))


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (13, 29)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 7, 31, 65])
def test_odd_sizes(channels, size, layout):
    for dtype in (torch.float16, torch.float32):
        check(arguments((2, channels, *size), dtype, layout, "tensor", "after"))


@on_device
@pytest.mark.parametrize("shape", [(5, 33), (2, 6, 11), (2, 3, 2, 5, 3)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_ranks(shape, layout):
    check(arguments(shape, torch.float32, layout, "random"))


@on_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vectors", DTYPES, ids=str)
def test_vectors_of_any_dtype(dtype, vectors):
    for layout in LAYOUTS:
        check(arguments((2, 5, 4, 4), dtype, layout, vectors=vectors))


@on_device
def test_vectors_that_differ_in_dtype_or_are_absent():
    for absent in itertools.product((False, True), repeat=2):
        z, mean, var, gamma, beta, *rest = arguments((2, 5, 4, 4), torch.float16, shared=True)
        gamma, beta = (None if gone else v for gone, v in zip(absent, (gamma.half(), beta.double())))
        check((z, mean.half(), var, gamma, beta, *rest))


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_batchnorm_and_with_a_shared_slope(layout):
    for dtype, residual in itertools.product(DTYPES, RESIDUALS):
        check(arguments((2, 5, 4, 4), dtype, layout, "tensor", residual, norm=False, shared=True))


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_shift_without_batchnorm(layout, dtype):
    """A convolution's bias, handed over as beta."""
    z, _, _, _, beta, *rest = arguments((2, 5, 4, 4), dtype, layout)
    given = (z, None, None, None, beta, *rest)
    y = pointwise.epilogue(*given)
    truth = reference.epilogue(*double(given))
    size = z.double().abs().max() + beta.double().abs().max() + 10
    allowed = 0.5 * torch.finfo(dtype).eps * truth.abs() + 8 * torch.finfo(torch.float32).eps * size
    assert ((y.double() - truth).abs() <= allowed).all()


@on_device
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's 0 * inf
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kind, value", [("relu", 0.0), *(("number", v) for v in (1.0, 0.25, 0.0, -0.5, 2.0)), ("tensor", 0.0)]
)
def test_nan_infinity_and_negative_zero(kind, value, dtype):
    """Bit for bit what eager gives, as nothing is rounded; ReLU(-inf) is 0, slope 0 gives NaN there."""
    edges = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, -2.0]
    z = torch.tensor(edges * 6, dtype=dtype, device=DEVICE).reshape(2, 3, 2, 4)
    slope = torch.tensor([0.0, -1.0, 0.5], dtype=dtype, device=DEVICE)
    rest = (None,) * 4 + (1e-5, kind, value, value, slope, None, None, False)
    y, expected = pointwise.epilogue(z, *rest), reference.epilogue(z, *rest)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    known = ~y.isnan()
    assert torch.equal(y.signbit()[known], expected.signbit()[known])


@on_device
def test_nan_in_a_vector_stays_in_its_channel():
    for layout in LAYOUTS:
        given = arguments((2, 3, 3, 3), torch.float32, layout, "relu", "none")
        given[1][1] = float("nan")
        y = pointwise.epilogue(*given)
        assert y[:, 1].isnan().all() and not y[:, [0, 2]].isnan().any()


@on_device
@pytest.mark.parametrize("seed", [(0, 0), (-1, -1), (1 << 33, 1 << 34), (123456789, 4)], ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_the_draws_are_the_oracle_s_bit_for_bit(seed, wide):
    """With z = -1 and slopes in [0, 1), y is minus the slope; the random index is that of NCHW in every layout."""
    seed = torch.tensor(seed, device=DEVICE)
    for shape, layout in itertools.product([(2, 3, 7, 7), (2, 16, 4, 4), (2, 9)], LAYOUTS):
        z = -arguments(shape, torch.float32, layout)[0].fill_(1.0)
        with mock.patch.object(launch, "INT32_ELEMENTS", 0 if wide else 2**31):
            y = pointwise.epilogue(z, *(None,) * 4, 1e-5, "random", 0.0, 1.0, None, seed, None, False)
        assert torch.equal(-y, reference.uniform(seed, shape))


@on_device
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("slope_kind", SLOPE_KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout(layout, slope_kind, residual):
    """Kept elements are scaled; an element is 0 where the oracle drops it, whatever the layout."""
    for dtype, shape in zip(DTYPES, [(2, 3, 7, 7), (1, 16, 4, 8), (2, 9, 3, 5), (3, 2, 5)]):
        given = arguments(shape, dtype, layout, slope_kind, residual, norm=dtype != torch.float32, dropout=0.3)
        dropped = reference.keep(given[0], 0.3, given[10]) == 0
        assert 0 < dropped.sum() < dropped.numel() and not check(given)[dropped].any()


@on_device
@pytest.mark.parametrize("dropout", [0.0, 0.125, 0.3, 0.9999999, 1.0])
def test_dropout_factors(dropout):
    """With z = 1, y is the oracle's factors bit for bit; dropout 0 keeps every element."""
    for dtype, shape, layout in itertools.product(DTYPES, [(2, 3, 7, 7), (2, 16, 4, 4)], LAYOUTS):
        z, *rest = arguments(shape, dtype, layout, "relu", "none", norm=False, dropout=dropout)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        expected = torch.ones_like(z) * reference.keep(z.to(wide), dropout, rest[9])
        assert torch.equal(pointwise.epilogue(z.fill_(1.0), *rest), expected.to(dtype))


@on_device
@pytest.mark.parametrize("shape", [(0, 3, 7, 7), (2, 0, 7, 7), (2, 3, 0, 7), (0, 5)], ids=str)
def test_empty(shape):
    for layout, kind in itertools.product(LAYOUTS, SLOPE_KINDS):
        given = arguments(shape, torch.float32, layout, kind)
        y = pointwise.epilogue(*given)
        assert (y.shape, y.stride()) == (given[0].shape, given[0].stride())


@on_device
@pytest.mark.parametrize("layout, config", [(k, c) for k, listed in configs.POINTWISE.items() for c in listed], ids=str)
def test_every_config(layout, config):
    """Rows and columns do not fill the tiles; one program for all rows and several; 32- and 64-bit offsets."""
    shape = {"nhwc": (3, 37, 5, 9), "nchw": (5, 9, 4, 20), "nchw_flat": (5, 13, 7, 9)}[layout]
    given = arguments(shape, torch.float32, "NHWC" if layout == "nhwc" else "NCHW")
    assert operands.describe("z", given[0])[0].layout == layout
    for programs, limit in ((1, 2**31), (16, 0)):
        chosen = mock.patch.multiple(operands, pointwise_config=lambda key: config, POINTWISE_PROGRAMS=programs)
        with chosen, mock.patch.object(launch, "INT32_ELEMENTS", limit):
            check(given)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_outside_the_tensors_is_read_or_written(layout, poison):
    """Inputs start at an odd offset and are surrounded by NaN."""
    given = arguments((2, 7, 5, 9), torch.float32, layout)
    check(tuple(poison(a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in given))


@on_device
def test_expanded_and_sliced_vectors():
    z, mean, var, gamma, beta, eps, kind, lower, upper, slope, *rest = arguments((2, 4, 3, 3), torch.float32)
    pairs = torch.stack([mean, mean], 1)
    check((z, pairs[:, 0], var[:1].expand(4), gamma.flip(0), beta, eps, kind, lower, upper, slope[:1].expand(4), *rest))


@on_device
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_drawn_cases(data):
    draw = data.draw
    shape = draw(
        st.lists(st.integers(1, 40), min_size=4, max_size=4).filter(lambda s: s[0] * s[1] * s[2] * s[3] < 6000)
    )
    torch.manual_seed(draw(st.integers(0, 1000)))
    choice = [draw(st.sampled_from(options)) for options in (DTYPES, LAYOUTS, SLOPE_KINDS, RESIDUALS)]
    check(arguments(tuple(shape), *choice, norm=draw(st.booleans()), shared=draw(st.booleans())))


@on_device
def test_refusals():
    z, *rest = arguments((2, 4, 4, 4), torch.float32, residual="none")
    residual = torch.zeros_like(z)
    for bad, error, message in [
        (z.int(), TypeError, "z: expected float16, bfloat16, float32 or float64, got torch.int32"),
        (z[0, 0, 0], ValueError, r"z: expected \(N, C, ...\), got shape \(4,\)"),
        (z[..., ::2], ValueError, "z: expected a contiguous or channels_last tensor, got shape"),
    ]:
        with pytest.raises(error, match=message):
            pointwise.epilogue(bad, *rest)
    for bad in (residual[:1], residual.double(), residual.contiguous(memory_format=torch.channels_last), residual.mT):
        with pytest.raises(ValueError, match="residual: expected"):
            pointwise.epilogue(z, *rest[:-3], bad, False, 0.0)
    flattened = residual.reshape(4, 2, 4, 4)  # as many rows of as many columns
    with pytest.raises(ValueError, match="residual: expected"):
        pointwise.epilogue(z, *rest[:-3], flattened, False, 0.0)
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="dropout: expected a probability from 0 to 1, got"):
            pointwise.epilogue(z, *rest[:-1], bad)
    for kind, dropout in (("random", 0.0), ("relu", 0.5)):
        with pytest.raises(ValueError, match="seed: expected"):
            pointwise.epilogue(z, *rest[:5], kind, *rest[6:9], None, *rest[10:12], dropout)


@pytest.mark.skipif(INTERPRETING, reason="the interpreter takes CPU tensors")
def test_a_cpu_tensor_is_refused_without_the_interpreter():
    with (
        mock.patch(f"{__name__}.DEVICE", "cpu"),
        pytest.raises(RuntimeError, match="z: expected a CUDA tensor .* on cpu"),
    ):
        pointwise.epilogue(*arguments((2, 4, 4, 4), torch.float32))


@on_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_tensors(layout):
    """Several tiles per program, in every dtype."""
    for dtype, kind in itertools.product(DTYPES, SLOPE_KINDS):
        check(arguments((64, 96, 57, 31), dtype, layout, kind))


@on_gpu
def test_cuda_graph():
    given = arguments((2, 64, 14, 14), torch.bfloat16, "NHWC")
    expected = pointwise.epilogue(*given)  # compiles, which a capture must not
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        y = pointwise.epilogue(*given)
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)


@on_gpu
def test_stream_that_is_not_the_default_one():
    given = arguments((64, 64, 56, 56), torch.bfloat16, "NHWC")
    expected = pointwise.epilogue(*given)
    stream = torch.cuda.Stream()
    z = given[0].clone().fill_(float("nan"))
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        z.copy_(given[0])
        y = pointwise.epilogue(z, *given[1:])
    stream.synchronize()
    assert torch.equal(y, expected)


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_device_that_is_not_the_current_one():
    with mock.patch(f"{__name__}.DEVICE", "cuda:1"):
        check(arguments((2, 64, 14, 14), torch.bfloat16, "NHWC"))
    assert torch.cuda.current_device() == 0


@on_gpu
def test_sizes_that_change_do_not_recompile():
    compiled = []
    for batch, size in ((1, 8), (2, 16), (3, 24), (16, 32)):
        pointwise.epilogue(*arguments((batch, 64, size, size), torch.float16, "NHWC", "random"))
        compiled.append(len(pointwise.epilogue_kernel.device_caches[torch.cuda.current_device()][0]))
    assert len(set(compiled)) == 1
