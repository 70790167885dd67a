"""The Triton kernels for training against the fp64 oracle, on a GPU or on the CPU under Triton's interpreter."""

from __future__ import annotations

import contextlib
import itertools
from unittest import mock

import pytest
import torch
import triton_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_cases import CUDA, DEVICE, INTERPRETING, NAN, on_device, on_gpu

pytest.importorskip("triton")

from test_triton_epilogue import DTYPES, LAYOUTS, RESIDUALS, arguments, double, variants  # noqa: E402

from atrous import reference  # noqa: E402
from atrous.triton_kernels import launch  # noqa: E402
from atrous.triton_kernels.pointwise import backward as gradients
from atrous.triton_kernels.pointwise import (
    configs,  # noqa: E402
    operands,
)
from atrous.triton_kernels.pointwise import forward as pointwise
from atrous.triton_kernels.pointwise import reduce as channel_sums
from atrous.triton_kernels.pointwise import reduction_plan as reductions  # noqa: E402
from atrous.triton_kernels.pointwise import statistics as channel_statistics  # noqa: E402

SLOPES = ("relu", "number", "tensor", "shared", "random")
SHAPES = {"nhwc": ((3, 5, 4, 5), "NHWC"), "nchw": ((3, 5, 4, 8), "NCHW"), "nchw_flat": ((3, 5, 7, 7), "NCHW")}


@pytest.mark.skipif(INTERPRETING, reason="already in the interpreter's process")
def test_under_the_interpreter(capsys):
    cases.interpret(__file__, capsys=capsys, least=200)


@pytest.fixture(autouse=True)
def poisoned_outputs():
    with cases.poisoned_outputs():
        yield


def accumulator(z):
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def draw(shape, dtype, layout, slopes="tensor", residual="before", norm=True, dropout=0.0, **more):
    """grad, z and the epilogue's arguments. grad is 0 where u is near 0, since rounding may change the sign of u."""
    kind = "tensor" if slopes == "shared" else slopes
    z, *rest = arguments(shape, dtype, layout, kind, residual, norm, shared=slopes == "shared", dropout=dropout, **more)
    grad = torch.randn_like(z)
    u = reference.gradient(*double([grad, z, *rest]))[2]
    return grad.masked_fill_(u.abs() < 1e-3, 0.0), z, *rest


def means_of(z):
    """Random means of the size of gradients; like the sums, (3, C)."""
    return torch.randn(3, z.shape[1], device=z.device, dtype=accumulator(z))


def magnitudes(call):
    """Magnitudes per element of the terms of the sums: |du|, |(z - mean) / sqrt(var + eps)|, |dy * u|; and |scale|."""
    grad, z, mean, var, gamma, beta, eps, _, lower, upper, slope, _, residual, after, dropout = double(call)
    dy = grad.abs() / (1 - dropout)
    column = (1, -1) + (1,) * (z.dim() - 2)
    deviation, scale, shift = torch.zeros_like(z), torch.ones_like(z[:1]), 0.0
    if mean is not None:
        factor = (var + eps).rsqrt().view(column)
        deviation, scale = (z.abs() + mean.abs().view(column)) * factor, (factor * gamma.view(column)).abs()
        shift = mean.abs().view(column) * scale + beta.abs().view(column)
    u = z.abs() * scale + shift + (0 if residual is None else residual.abs())
    return dy * max(1.0, abs(lower), abs(upper), slope.abs().max().item()), deviation, dy * u, scale


def assert_within(result, truth, size, dtype):
    """Half a unit of the stored dtype, and 16 units of the arithmetic's dtype on the added magnitudes."""
    storage = torch.finfo(dtype)
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    over = (result.double() - truth).abs() - 0.5 * storage.eps * truth.abs() - 16 * unit * size
    over -= storage.smallest_normal * storage.eps
    assert not over.isnan().any() and (over <= 0).all(), f"{over.max().item()} over its budget"


@contextlib.contextmanager
def unmutated(*tensors):
    tensors = [t for t in tensors if isinstance(t, torch.Tensor)]
    before = [t.clone() for t in tensors]
    yield
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


def check_sums(call):
    grad, z = call[:2]
    with unmutated(*call):
        sums = gradients.epilogue_reduce(*call)
    assert (sums.shape, sums.dtype, sums.device) == ((3, z.shape[1]), accumulator(z), z.device)
    du, deviation, slopes, _ = magnitudes(call)
    size = torch.stack([part.transpose(0, 1).flatten(1).sum(1) for part in (du, du * deviation, slopes)])
    assert_within(sums, reference.epilogue_reduce(*double(call)), size, sums.dtype)
    return sums


def check_gradients(call, means=None, need_z=True, need_residual=True):
    grad, z, *rest = call
    with unmutated(*call, means):
        result = gradients.epilogue_backward(grad, z, means, need_z, need_residual, *rest)
    truth = reference.epilogue_backward(*double([grad, z, means, need_z, need_residual, *rest]))
    du, deviation, _, scale = magnitudes(call)
    column, size = (1, -1) + (1,) * (z.dim() - 2), du
    if means is not None and call[2] is not None:
        plain, weighted = means[:2].double().abs()
        size = size + plain.view(column) + deviation * weighted.view(column)
    for gradient, true, added, needed in zip(result, truth, (size * scale, du), (need_z, need_residual)):
        assert (gradient.dtype, gradient.device) == (z.dtype, z.device)
        assert gradient.shape == (z.shape if needed else (0,))
        if needed:
            assert gradient.stride() == z.stride()
            assert_within(gradient, true, added, z.dtype)
    return result


def check_statistics(z):
    """Error bounds: 4 units of the mean magnitude for mean; 16 units of var, and the effect of that error, for var."""
    with unmutated(z):
        mean, var = gradients.statistics(z)
    assert all((v.shape, v.dtype, v.device) == ((z.shape[1],), accumulator(z), z.device) for v in (mean, var))
    assert mean.untyped_storage().data_ptr() != var.untyped_storage().data_ptr()
    values = z.double().transpose(0, 1).flatten(1)
    true_mean, true_var = values.mean(1), values.var(1, correction=0)
    unit = torch.finfo(mean.dtype).eps
    mean_error = 4 * unit * values.abs().mean(1)
    assert ((mean.double() - true_mean).abs() <= mean_error).all()
    assert (var >= 0).all()
    var_error = 16 * unit * true_var + mean_error.square() + 2 * mean_error * true_var.sqrt()
    assert ((var.double() - true_var).abs() <= var_error).all()
    return mean, var


@contextlib.contextmanager
def programs(multiprocessors, config=None, int64=False, steps=1):
    """Launches as on a GPU with that many multiprocessors; config: for all kernels; int64: 64-bit offsets; steps:
    REDUCTION_STEPS."""
    chosen = {} if config is None else {"pointwise_config": lambda key: config}
    chip = {"chip": lambda device: (90, multiprocessors)}
    with (
        mock.patch.multiple(reductions, **chip, **chosen, REDUCTION_STEPS=steps),
        mock.patch.multiple(operands, **chip, **chosen),
        mock.patch.object(launch, "INT32_ELEMENTS", 0 if int64 else 2**31),
    ):
        yield


@on_device
@pytest.mark.parametrize("dtype, slopes, residual", variants(SLOPES), ids=str)
@pytest.mark.parametrize("layout", SHAPES)
def test_every_variant(layout, dtype, slopes, residual):
    """Without BatchNorm, with constant and with batch statistics; with dropout, and in fp32 also without."""
    for norm, dropout in itertools.product((False, True), (0.0, 0.3) if dtype == torch.float32 else (0.3,)):
        call = draw(SHAPES[layout][0], dtype, SHAPES[layout][1], slopes, residual, norm, dropout)
        assert operands.describe("z", call[1])[0].layout == layout
        check_sums(call)
        check_gradients(call)
        if norm:
            check_gradients(call, means_of(call[1]))


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (13, 29)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 31, 65])
def test_odd_sizes(channels, size, layout):
    """Several programs, whose last tiles are nearly empty."""
    batch = max(1, min(5, 4000 // (channels * size[0] * size[1])))
    with programs(3):
        call = draw((batch, channels, *size), torch.float16 if channels > 3 else torch.float32, layout)
        check_sums(call)
        check_gradients(call, means_of(call[1]))
        check_statistics(call[1])


EVERY_CONFIG = [(layout, config) for layout, listed in configs.POINTWISE.items() for config in listed]
ROWS = {"nhwc": (2, 37, 9, 11), "nchw": (3, 9, 8, 12), "nchw_flat": (10, 9, 7, 9)}


@on_device
@pytest.mark.parametrize("multiprocessors", [1, 50])
@pytest.mark.parametrize("layout, config", EVERY_CONFIG, ids=str)
def test_every_config(layout, config, multiprocessors):
    """One and several splits per tile, tiles that are not full, 32- and 64-bit offsets."""
    order = "NHWC" if layout == "nhwc" else "NCHW"
    with programs(multiprocessors, config, int64=multiprocessors == 50, steps=1 if multiprocessors == 50 else 4):
        call = draw(ROWS[layout], torch.float32, order)
        check_sums(call)
        check_gradients(call, means_of(call[1]))
        check_statistics(call[1])


def test_the_programs_of_a_reduction():
    """They cover every step, none is idle, and they store little compared with what they read."""
    shapes = {"nhwc": (32 * 56 * 56, 64), "nchw": (32 * 64, 56 * 56), "nchw_flat": (32, 512 * 49)}
    for layout, config in EVERY_CONFIG:
        channels, pixels = (512, 49) if layout == "nchw_flat" else (64, 56 * 56)
        for rows, cols in (shapes[layout], (channels if layout == "nchw" else 1, shapes[layout][1])):
            key = configs.PointwiseKey(layout, rows, cols)
            tiles, steps, splits = grid = reductions.grid(key, channels, config, 132)
            covered = steps * tiles * config.block_rows * config.block_cols
            assert rows * cols <= covered and 1 <= splits <= steps
            assert all(len(range(split, steps, splits)) > 0 for split in range(splits))
            assert splits == 1 or tiles * splits <= configs.REDUCTION_PROGRAMS * 132
            constants = {"LAYOUT": layout, "BLOCK_COLS": config.block_cols}
            plan = launch.Plan(None, 1, (rows, cols, channels, pixels, *grid), constants)
            partial, _ = reductions.workspace(plan, torch.empty(1))
            assert partial.numel() <= max(0.2 * rows * cols, 8 * channels)


@on_device
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)], ids=str)
def test_an_unneeded_gradient_is_empty(layout, needed):
    call = draw(SHAPES[layout][0], torch.float16, SHAPES[layout][1])
    means = means_of(call[1])[:2]
    whole = check_gradients(call, means)
    for part, all_of_it, is_needed in zip(check_gradients(call, means, *needed), whole, needed):
        assert torch.equal(part, all_of_it if is_needed else part.new_empty(0))


@on_device
@pytest.mark.parametrize("layout", SHAPES)
def test_one_launch_per_call(layout):
    call = draw(SHAPES[layout][0], torch.float32, SHAPES[layout][1])
    counter = mock.Mock(side_effect=launch.launch)
    with contextlib.ExitStack() as stack:
        for module in (channel_statistics, channel_sums, gradients):
            stack.enter_context(mock.patch.object(module, "launch", counter))
        for run in (check_sums, check_gradients, lambda call: check_statistics(call[1])):
            run(call)
        assert counter.call_count == 3


@on_device
@pytest.mark.parametrize("layout", SHAPES)
def test_the_same_call_gives_the_same_bits(layout):
    shape, order = SHAPES[layout]
    call = draw((shape[0] * 8, *shape[1:]), torch.float16, order, dropout=0.3)
    means = means_of(call[1])
    with programs(4):
        for run in (
            lambda: [gradients.epilogue_reduce(*call)],
            lambda: gradients.epilogue_backward(*call[:2], means, True, True, *call[2:]),
            lambda: gradients.statistics(call[1]),
        ):
            assert all(torch.equal(a, b) for a, b in zip(run(), run()))


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sign_of_u_is_the_forward_s(layout):
    """Near 0, where one rounding more or less would change it."""
    call = draw((2, 5, 7, 9), torch.float32, layout, "relu", "before", dropout=0.3)
    grad, z, mean, var, gamma, beta, eps, *rest = call
    u = reference.normalize(z, mean, var, gamma, beta, eps)
    rest[5].copy_(-u)  # the residual: u + residual is rounding error alone
    y = pointwise.epilogue(z, mean, var, gamma, beta, eps, *rest)
    _, du = gradients.epilogue_backward(grad.fill_(1.0), z, None, False, True, mean, var, gamma, beta, eps, *rest)
    assert torch.equal(y > 0, du > 0) and 0.1 < (du > 0).float().mean() < 0.6


@on_device
@pytest.mark.parametrize("seed", [(0, 0), (-1, -1), (1 << 33, 1 << 34)], ids=str)
def test_the_draws_are_the_forward_s(seed):
    """With z = -1 and grad = 1, du is the forward's -y: the slope times the factor of dropout."""
    for (shape, layout), int64 in itertools.product(SHAPES.values(), (False, True)):
        z = arguments(shape, torch.float32, layout)[0].fill_(-1.0)
        rest = (*(None,) * 4, 1e-5, "random", 0.25, 1.0, None, torch.tensor(seed, device=DEVICE), None, False, 0.3)
        with programs(2, int64=int64):
            y = pointwise.epilogue(z, *rest)
            _, du = gradients.epilogue_backward(torch.ones_like(z), z, None, False, True, *rest)
        assert torch.equal(du, -y) and 0 < (y == 0).sum() < y.numel()


@on_device
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's 0 * inf
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind, value", [("relu", 0.0), *(("number", v) for v in (1.0, 0.0, -0.5)), ("tensor", 0.0)])
def test_nan_infinity_and_negative_zero(kind, value, dtype):
    """For each pair of edge values of z and grad du is the oracle's, bit for bit; the sums match, also NaN and inf."""
    edges = [NAN, float("inf"), -float("inf"), 0.0, -0.0, 1.0, -2.0, 0.5]
    z, grad = (t.reshape(8, 1, 1, 8) for t in torch.tensor(list(itertools.product(edges, edges))).to(DEVICE, dtype).T)
    slope = torch.tensor([0.5], dtype=dtype, device=DEVICE)
    rest = (None,) * 4 + (1e-5, kind, value, value, slope, None, None, False, 0.0)
    z, grad = z.contiguous(), grad.contiguous()
    expected = reference.epilogue_backward(grad, z, None, True, True, *rest)
    for result, truth in zip(gradients.epilogue_backward(grad, z, None, True, True, *rest), expected):
        torch.testing.assert_close(result, truth, rtol=0, atol=0, equal_nan=True)
        known = ~result.isnan()
        assert torch.equal(result.signbit()[known], truth.signbit()[known])
    for value in (NAN, float("inf"), -float("inf"), -0.0):  # alone among zeros, since inf - inf is NaN
        single = torch.zeros(2, 3, 2, 4, dtype=dtype, device=DEVICE)
        single[1, 1, 1, 1] = value
        for grad, z in ((single, torch.ones_like(single)), (torch.ones_like(single), single)):
            sums = gradients.epilogue_reduce(grad, z, *rest)
            truth = reference.epilogue_reduce(*double([grad, z, *rest]))
            torch.testing.assert_close(sums.double(), truth, rtol=1e-6, atol=0, equal_nan=True)


@on_device
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("layout", SHAPES)
def test_a_channel_s_nan_stays_in_its_channel(layout):
    """So does an infinite slope if no u is negative."""
    call = draw(SHAPES[layout][0], torch.float32, SHAPES[layout][1])
    for bad, sums in ((float("inf"), slice(1, 2)), (NAN, slice(1, 3))):
        call[1][1, 2, 1, 1] = bad
        for result in (*gradients.epilogue_reduce(*call)[sums], *gradients.statistics(call[1])):
            assert not result[2].isfinite() and torch.cat([result[:2], result[3:]]).isfinite().all()
    grad, z, *rest = draw(SHAPES[layout][0], torch.float32, SHAPES[layout][1], norm=False, residual="none")
    rest[8][1] = float("inf")
    assert gradients.epilogue_reduce(grad, z.abs_().add_(1), *rest).isfinite().all()


@on_device
@pytest.mark.parametrize("multiprocessors", [1, 20])
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(dtype, layout, multiprocessors):
    shape, order = SHAPES[layout]
    with programs(multiprocessors):
        check_statistics(arguments((shape[0] * 8, *shape[1:]), dtype, order)[0])


@on_device
def test_an_outlier_among_the_first_values():
    """With that value as the shift, the variance of this many values would be wrong by percents."""
    z = torch.full((64, 4, 16, 16), 0.3, dtype=torch.float32, device=DEVICE)
    z = z.contiguous(memory_format=torch.channels_last)
    z[0, :, 0, 0] = 1000.0
    with programs(1):
        mean, var = gradients.statistics(z)
    true_mean, true_var = reference.statistics(z.double())
    torch.testing.assert_close(mean.double(), true_mean, rtol=1e-3, atol=0)
    torch.testing.assert_close(var.double(), true_var, rtol=1e-3, atol=0)


@on_device
@pytest.mark.parametrize("layout", SHAPES)
def test_a_mean_that_dwarfs_the_deviation(layout):
    """E[z^2] - E[z]^2 in fp32 would be wrong by several units; z - mean in the sums and in dz as well."""
    shape, order = SHAPES[layout]
    grad, z, _, _, *rest = draw((shape[0] * 12, *shape[1:]), torch.float32, order, "relu", "none")
    z.add_(1e4)
    with programs(5):
        mean, var = gradients.statistics(z)
        true_mean, true_var = reference.statistics(z.double())
        torch.testing.assert_close(mean.double(), true_mean, rtol=2e-7, atol=0)
        torch.testing.assert_close(var.double(), true_var, rtol=1e-4, atol=0)
        call = (grad, z, mean, var, *rest)
        grad.masked_fill_(reference.gradient(*double(call))[2].abs() < 0.02, 0.0)  # the error of u is in units of 1e4
        sums = gradients.epilogue_reduce(*call)
        truth = reference.epilogue_reduce(*double(call))
        torch.testing.assert_close(sums[:2].double(), truth[:2], rtol=1e-4, atol=1e-3)
        means = truth / (z.numel() / z.shape[1])
        dz, _ = gradients.epilogue_backward(grad, z, means.float(), True, False, *call[2:])
        expected, _ = reference.epilogue_backward(*double([grad, z, means, True, False, *call[2:]]))
        torch.testing.assert_close(dz.double(), expected, rtol=1e-4, atol=1e-5)


@on_device
@pytest.mark.parametrize("layout", SHAPES)
def test_constants(layout):
    """If all values are equal, mean is that value and var is near 0, never negative."""
    shape, order = SHAPES[layout]
    with programs(3):
        for value in (0.0, -1.0, 1234.567, 1e20):
            mean, var = gradients.statistics(arguments(shape, torch.float32, order)[0].fill_(value))
            torch.testing.assert_close(mean, torch.full_like(mean, value), rtol=2e-7, atol=0)
            assert (var >= 0).all() and (var.sqrt() <= 2e-7 * abs(value)).all()
    mean, var = gradients.statistics(one := torch.randn(1, 5, 1, 1, device=DEVICE))
    assert torch.equal(mean, one.flatten()) and not var.any()


@on_device
@pytest.mark.parametrize("layout", SHAPES)
def test_nothing_outside_the_tensors_is_read_or_written(layout, poison):
    """Inputs at an odd offset, workspace and results are surrounded by NaN, counters by zeros."""
    shape, order = SHAPES[layout]
    call = draw((shape[0] * 8, *shape[1:]), torch.float32, order, dropout=0.3)
    call = [poison(a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in call]
    means, empty, counters = poison(means_of(call[1])), torch.empty, []

    def guarded(device, count):
        counters.append(torch.zeros(count + 8, dtype=torch.int32, device=device))
        return counters[-1][:count]

    with (
        programs(4),
        mock.patch.object(reductions.torch, "empty", lambda *a, **k: poison(empty(*a, **k))),
        mock.patch.object(reductions, "counters", guarded),
    ):
        results = [gradients.epilogue_reduce(*call), *gradients.statistics(call[1])]
    assert len(counters) == 2 and not any(c.any() for c in counters)
    with programs(4):
        assert all(torch.equal(a, b) for a, b in zip(results, [check_sums(call), *check_statistics(call[1])]))
        check_gradients(call, means)


@on_device
def test_other_ranks_and_vectors():
    for shape, layout in itertools.product([(5, 33), (2, 6, 11), (2, 3, 2, 5, 3)], LAYOUTS):
        call = draw(shape, torch.float32, layout, "random")
        check_sums(call)
        check_gradients(call, means_of(call[1]))
        check_statistics(call[1])
    for vectors in DTYPES:
        call = draw((2, 5, 4, 4), torch.float16, "NHWC", vectors=vectors)
        check_sums(call)
        check_gradients(call, means_of(call[1]).double())
    grad, z, mean, var, gamma, beta, *rest = draw((2, 5, 4, 4), torch.float32, "NCHW")
    for vectors in ((mean, var, None, beta), (mean, var, gamma, None), (None, None, None, beta)):
        ones = [mean, var, torch.ones_like(mean), torch.zeros_like(mean)]
        whole = [one if given is None else given for given, one in zip(vectors, ones)]
        if vectors[0] is None:
            whole = [torch.zeros_like(mean), torch.ones_like(mean) - rest[0], torch.ones_like(mean), beta]
        result = gradients.epilogue_backward(grad, z, None, True, True, *vectors, *rest)
        expected = gradients.epilogue_backward(grad, z, None, True, True, *whole, *rest)
        for a, b in zip(result, expected):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@on_device
@pytest.mark.parametrize("shape", [(0, 3, 7, 7), (2, 3, 0, 7), (2, 0, 4, 4), (0, 5)], ids=str)
def test_empty(shape):
    for layout, dtype in itertools.product(LAYOUTS, (torch.float16, torch.float64)):
        z, *rest = arguments(shape, dtype, layout, "relu", "none")
        call, wide = (torch.empty_like(z), z, *rest), accumulator(z)
        assert torch.equal(gradients.epilogue_reduce(*call), torch.zeros(3, shape[1], dtype=wide, device=DEVICE))
        for result in gradients.statistics(call[1]):
            assert torch.equal(result, torch.zeros(shape[1], dtype=wide, device=DEVICE))
        means = torch.zeros(2, shape[1], device=DEVICE)
        dz, du = gradients.epilogue_backward(*call[:2], means, True, False, *call[2:])
        assert (dz.shape, dz.stride(), du.shape) == (call[1].shape, call[1].stride(), (0,))


@on_device
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_drawn_cases(data):
    choose = data.draw
    shape = choose(st.tuples(st.integers(1, 4), st.integers(1, 33), st.integers(1, 6), st.integers(1, 8)))
    torch.manual_seed(choose(st.integers(0, 1000)))
    choice = [choose(st.sampled_from(options)) for options in (DTYPES, LAYOUTS, SLOPES, RESIDUALS)]
    call = draw(shape, *choice, norm=choose(st.booleans()), dropout=choose(st.sampled_from([0.0, 0.5])))
    with programs(choose(st.integers(1, 9))):
        check_sums(call)
        check_gradients(call, choose(st.sampled_from([None, means_of(call[1])])))
        check_statistics(call[1])


@on_device
def test_refusals():
    grad, z, *rest = draw((2, 4, 4, 4), torch.float32, "NCHW", "relu", "none")
    means, good = means_of(z), torch.zeros_like(z)
    runs = [
        lambda grad, z, *rest: gradients.epilogue_reduce(grad, z, *rest),
        lambda grad, z, *rest: gradients.epilogue_backward(grad, z, means, True, True, *rest),
    ]
    for run in (*runs, lambda grad, z, *rest: gradients.statistics(z)):
        with pytest.raises(TypeError, match="z: expected float16, bfloat16, float32 or float64, got torch.int32"):
            run(grad, z.int(), *rest)
        with pytest.raises(ValueError, match=r"z: expected \(N, C, ...\), got shape \(4,\)"):
            run(grad, z[0, 0, 0], *rest)
        with pytest.raises(ValueError, match="z: expected a contiguous or channels_last tensor, got shape"):
            run(grad, z[..., ::2], *rest)
    other = good.contiguous(memory_format=torch.channels_last)
    for run in runs:
        for bad in (good[:1], good.double(), other, good.reshape(4, 2, 4, 4), good.reshape(2, 4, 16)):
            with pytest.raises(ValueError, match="grad: expected shape"):
                run(bad, z, *rest)
            for after in (False, True):
                with pytest.raises(ValueError, match="residual: expected shape"):
                    run(grad, z, *rest[:-3], bad, after, 0.0)
        with pytest.raises(ValueError, match="grad: expected a contiguous"):
            run(good[..., :1].expand_as(z), z, *rest)
        with pytest.raises(ValueError, match="dropout: expected a probability"):
            run(grad, z, *rest[:-1], 2.0)
        with pytest.raises(ValueError, match="seed: expected"):
            run(grad, z, *rest[:9], None, *rest[10:12], 0.5)
    for bad in (means[:1], means[:, :3], means[0]):
        with pytest.raises(ValueError, match=r"means: expected \(2, 4\) or \(3, 4\), got"):
            gradients.epilogue_backward(grad, z, bad, True, True, *rest)


@pytest.mark.skipif(INTERPRETING or CUDA, reason="the interpreter takes CPU tensors")
def test_a_cpu_tensor_is_refused_without_the_interpreter():
    call = draw((2, 4, 4, 4), torch.float32, "NCHW")
    for run in (
        lambda: gradients.epilogue_reduce(*call),
        lambda: gradients.epilogue_backward(*call[:2], None, True, True, *call[2:]),
        lambda: gradients.statistics(call[1]),
    ):
        with pytest.raises(RuntimeError, match="z: expected a CUDA tensor .* on cpu"):
            run()


@on_gpu
@pytest.mark.parametrize("size", [(57, 31), (14, 14), (56, 56)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_tensors(layout, size):
    """Many programs of many steps, combined in the same order each time, in every dtype."""
    for dtype, slopes in itertools.product(DTYPES, SLOPES):
        call = draw((64, 96, *size), dtype, layout, slopes, dropout=0.3)
        first, mean_and_var = check_sums(call), check_statistics(call[1])
        check_gradients(call, means_of(call[1]))
        for _ in range(3):
            assert torch.equal(gradients.epilogue_reduce(*call), first)
            assert all(torch.equal(a, b) for a, b in zip(gradients.statistics(call[1]), mean_and_var))


@on_gpu
def test_cuda_graph():
    call = draw((8, 64, 14, 14), torch.bfloat16, "NHWC", dropout=0.3)

    def run():
        sums = gradients.epilogue_reduce(*call)
        return (
            sums,
            *gradients.epilogue_backward(*call[:2], sums, True, True, *call[2:]),
            *gradients.statistics(call[1]),
        )

    expected = run()  # compiles, which a capture must not
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        result = run()
    for _ in range(2):
        for tensor in result:
            tensor.zero_()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(result, expected))
