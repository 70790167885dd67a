"""The Triton epilogue against the fp64 oracle, on a GPU or on the CPU under Triton's interpreter."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
import triton_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_cases import DEVICE, INTERPRETING, RESIDUALS, SLOPE_KINDS, on_device, on_gpu

pytest.importorskip("triton")

import triton_pointwise  # noqa: E402
from triton_pointwise import DTYPES, LAYOUTS, arguments, changed, check, double, variants  # noqa: E402

from atrous import reference  # noqa: E402
from atrous.core.spec import Epilogue  # noqa: E402
from atrous.testing import assert_elements  # noqa: E402
from atrous.triton_kernels import launch  # noqa: E402
from atrous.triton_kernels.pointwise import configs, operands  # noqa: E402
from atrous.triton_kernels.pointwise import forward as pointwise  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


test_under_the_interpreter = cases.interpreted(__file__, least=300)


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
        z, e = arguments((2, 5, 4, 4), torch.float16, shared=True)
        gamma, beta = (None if gone else v for gone, v in zip(absent, (e.gamma.half(), e.beta.double())))
        check((z, e._replace(mean=e.mean.half(), gamma=gamma, beta=beta)))


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
    z, e = arguments((2, 5, 4, 4), dtype, layout)
    given = (z, e._replace(mean=None, var=None, gamma=None))
    size = z.double().abs().max() + e.beta.double().abs().max() + 10
    assert_elements(pointwise.epilogue(*given), reference.epilogue(*double(given)), size, computed=8)


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
    e = Epilogue(slope_kind=kind, slope_value=value, slope=slope)
    y, expected = pointwise.epilogue(z, e), reference.epilogue(z, e)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    known = ~y.isnan()
    assert torch.equal(y.signbit()[known], expected.signbit()[known])


@on_device
def test_nan_in_a_vector_stays_in_its_channel():
    for layout in LAYOUTS:
        given = arguments((2, 3, 3, 3), torch.float32, layout, "relu", "none")
        given[1].mean[1] = float("nan")
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
            y = pointwise.epilogue(z, Epilogue(slope_kind="random", slope_value=0.0, seed=seed))
        assert torch.equal(-y, reference.uniform(seed, shape))


@on_device
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("slope_kind", SLOPE_KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout(layout, slope_kind, residual):
    """Kept elements are scaled; an element is 0 where the oracle drops it, whatever the layout."""
    for dtype, shape in zip(DTYPES, [(2, 3, 7, 7), (1, 16, 4, 8), (2, 9, 3, 5), (3, 2, 5)]):
        given = arguments(shape, dtype, layout, slope_kind, residual, norm=dtype != torch.float32, dropout=0.3)
        dropped = reference.keep(given[0], 0.3, given[1].seed) == 0
        assert 0 < dropped.sum() < dropped.numel() and not check(given)[dropped].any()


@on_device
@pytest.mark.parametrize("dropout", [0.0, 0.125, 0.3, 0.9999999, 1.0])
def test_dropout_factors(dropout):
    """With z = 1, y is the oracle's factors bit for bit; dropout 0 keeps every element."""
    for dtype, shape, layout in itertools.product(DTYPES, [(2, 3, 7, 7), (2, 16, 4, 4)], LAYOUTS):
        z, e = arguments(shape, dtype, layout, "relu", "none", norm=False, dropout=dropout)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        expected = torch.ones_like(z) * reference.keep(z.to(wide), dropout, e.seed)
        assert torch.equal(pointwise.epilogue(z.fill_(1.0), e), expected.to(dtype))


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
    check(changed(poison, given))


@on_device
def test_expanded_and_sliced_vectors():
    z, e = arguments((2, 4, 3, 3), torch.float32)
    pairs = torch.stack([e.mean, e.mean], 1)
    vectors = {"mean": pairs[:, 0], "var": e.var[:1].expand(4), "gamma": e.gamma.flip(0)}
    check((z, e._replace(**vectors, slope=e.slope[:1].expand(4))))


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
def test_residuals_of_other_strides():
    z, e = arguments((2, 4, 4, 4), torch.float32, residual="before")
    nhwc = e.residual.contiguous(memory_format=torch.channels_last)
    for same in (nhwc, e.residual.mT.contiguous().mT):
        assert torch.equal(pointwise.epilogue(z, e._replace(residual=same)), pointwise.epilogue(z, e))


def test_strides_of_axes_of_size_1_need_no_copy():
    z = torch.empty(1, 4, 1, 3)
    x = torch.empty_strided(z.shape, (99, 3, 7, 1))
    assert operands.in_layout_of(z, "residual", x) is x
    assert operands.in_layout_of(z, "residual", torch.empty(1, 3, 1, 4).permute(0, 3, 2, 1)).stride() == z.stride()


@on_device
def test_refusals():
    z, e = arguments((2, 4, 4, 4), torch.float32, residual="none")
    residual = torch.zeros_like(z)
    for bad, error, message in [
        (z.int(), TypeError, "z: expected float16, bfloat16, float32 or float64, got torch.int32"),
        (z[0, 0, 0], ValueError, r"z: expected \(N, C, ...\), got shape \(4,\)"),
        (z[..., ::2], ValueError, "z: expected a contiguous or channels_last tensor, got shape"),
    ]:
        with pytest.raises(error, match=message):
            pointwise.epilogue(bad, e)
    for bad in (residual[:1], residual.double(), residual.flatten(2)):
        with pytest.raises(ValueError, match="residual: expected"):
            pointwise.epilogue(z, e._replace(residual=bad))
    flattened = residual.reshape(4, 2, 4, 4)  # as many rows of as many columns
    with pytest.raises(ValueError, match="residual: expected"):
        pointwise.epilogue(z, e._replace(residual=flattened))
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="dropout: expected a probability from 0 to 1, got"):
            pointwise.epilogue(z, e._replace(dropout=bad))
    for kind, dropout in (("random", 0.0), ("relu", 0.5)):
        with pytest.raises(ValueError, match="seed: expected"):
            pointwise.epilogue(z, e._replace(slope_kind=kind, seed=None, dropout=dropout))


@pytest.mark.skipif(INTERPRETING, reason="the interpreter takes CPU tensors")
def test_a_cpu_tensor_is_refused_without_the_interpreter():
    with (
        mock.patch.object(triton_pointwise, "DEVICE", "cpu"),
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
    with mock.patch.object(triton_pointwise, "DEVICE", "cuda:1"):
        check(arguments((2, 64, 14, 14), torch.bfloat16, "NHWC"))
    assert torch.cuda.current_device() == 0


@on_gpu
def test_sizes_that_change_do_not_recompile():
    compiled = []
    for batch, size in ((1, 8), (2, 16), (3, 24), (16, 32)):
        pointwise.epilogue(*arguments((batch, 64, size, size), torch.float16, "NHWC", "random"))
        compiled.append(len(pointwise.epilogue_kernel.device_caches[torch.cuda.current_device()][0]))
    assert len(set(compiled)) == 1
