"""Values of the Triton kernels for training: signs, draws, NaN and infinities, extreme means, and refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
import triton_cases as cases
from triton_cases import CUDA, DEVICE, INTERPRETING, NAN, on_device

pytest.importorskip("triton")

from triton_pointwise import DTYPES, LAYOUTS, SHAPES, arguments, check_statistics, double, draw, means_of, programs  # noqa: E402

from atrous import reference  # noqa: E402
from atrous.core.spec import Epilogue  # noqa: E402
from atrous.triton_kernels.pointwise import backward as gradients  # noqa: E402
from atrous.triton_kernels.pointwise import forward as pointwise  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


test_under_the_interpreter = cases.interpreted(__file__, least=40)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sign_of_u_is_the_forward_s(layout):
    """Near 0, where one rounding more or less would change it."""
    grad, z, e = draw((2, 5, 7, 9), torch.float32, layout, "relu", "before", dropout=0.3)
    e.residual.copy_(-reference.normalize(z, e))  # u + residual is rounding error alone
    y = pointwise.epilogue(z, e)
    _, du = gradients.epilogue_backward(grad.fill_(1.0), z, None, False, True, e)
    assert torch.equal(y > 0, du > 0) and 0.05 < (du > 0).float().mean() < 0.6


@on_device
@pytest.mark.parametrize("seed", [(0, 0), (-1, -1), (1 << 33, 1 << 34)], ids=str)
def test_the_draws_are_the_forward_s(seed):
    """With z = -1 and grad = 1, du is the forward's -y: the slope times the factor of dropout."""
    for (shape, layout), int64 in itertools.product(SHAPES.values(), (False, True)):
        z = arguments(shape, torch.float32, layout)[0].fill_(-1.0)
        drawn = torch.tensor(seed, device=DEVICE)
        e = Epilogue(slope_kind="random", slope_value=0.25, seed=drawn, dropout=0.3)
        with programs(2, int64=int64):
            y = pointwise.epilogue(z, e)
            _, du = gradients.epilogue_backward(torch.ones_like(z), z, None, False, True, e)
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
    e = Epilogue(slope_kind=kind, slope_value=value, slope=slope)
    z, grad = z.contiguous(), grad.contiguous()
    expected = reference.epilogue_backward(grad, z, None, True, True, e)
    for result, truth in zip(gradients.epilogue_backward(grad, z, None, True, True, e), expected):
        torch.testing.assert_close(result, truth, rtol=0, atol=0, equal_nan=True)
        known = ~result.isnan()
        assert torch.equal(result.signbit()[known], truth.signbit()[known])
    for value in (NAN, float("inf"), -float("inf"), -0.0):  # alone among zeros, since inf - inf is NaN
        single = torch.zeros(2, 3, 2, 4, dtype=dtype, device=DEVICE)
        single[1, 1, 1, 1] = value
        for grad, z in ((single, torch.ones_like(single)), (torch.ones_like(single), single)):
            sums = gradients.epilogue_reduce(grad, z, e)
            truth = reference.epilogue_reduce(*double([grad, z, e]))
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
    grad, z, e = draw(SHAPES[layout][0], torch.float32, SHAPES[layout][1], norm=False, residual="none")
    e.slope[1] = float("inf")
    assert gradients.epilogue_reduce(grad, z.abs_().add_(1), e).isfinite().all()


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
    grad, z, e = draw((shape[0] * 12, *shape[1:]), torch.float32, order, "relu", "none")
    z.add_(1e4)
    with programs(5):
        mean, var = gradients.statistics(z)
        true_mean, true_var = reference.statistics(z.double())
        torch.testing.assert_close(mean.double(), true_mean, rtol=2e-7, atol=0)
        torch.testing.assert_close(var.double(), true_var, rtol=1e-4, atol=0)
        call = (grad, z, e._replace(mean=mean, var=var))
        grad.masked_fill_(reference.gradient(*double(call))[2].abs() < 0.02, 0.0)  # the error of u is in units of 1e4
        sums = gradients.epilogue_reduce(*call)
        truth = reference.epilogue_reduce(*double(call))
        torch.testing.assert_close(sums[:2].double(), truth[:2], rtol=1e-4, atol=1e-3)
        means = truth / (z.numel() / z.shape[1])
        dz, _ = gradients.epilogue_backward(grad, z, means.float(), True, False, call[2])
        expected, _ = reference.epilogue_backward(*double([grad, z, means, True, False, call[2]]))
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
def test_gradients_and_residuals_of_other_strides():
    grad, z, e = draw((2, 4, 4, 4), torch.float32, "NCHW", "relu", "before")
    nhwc = {"memory_format": torch.channels_last}
    moved, means = e._replace(residual=e.residual.contiguous(**nhwc)), means_of(z)
    for run in (
        lambda grad, e: (gradients.epilogue_reduce(grad, z, e),),
        lambda grad, e: gradients.epilogue_backward(grad, z, means, True, True, e),
    ):
        assert all(map(torch.equal, run(grad.contiguous(**nhwc), moved), run(grad, e)))


@on_device
def test_refusals():
    grad, z, e = draw((2, 4, 4, 4), torch.float32, "NCHW", "relu", "none")
    means, good = means_of(z), torch.zeros_like(z)
    runs = [
        gradients.epilogue_reduce,
        lambda grad, z, e: gradients.epilogue_backward(grad, z, means, True, True, e),
    ]
    for run in (*runs, lambda grad, z, e: gradients.statistics(z)):
        with pytest.raises(TypeError, match="z: expected float16, bfloat16, float32 or float64, got torch.int32"):
            run(grad, z.int(), e)
        with pytest.raises(ValueError, match=r"z: expected \(N, C, ...\), got shape \(4,\)"):
            run(grad, z[0, 0, 0], e)
        with pytest.raises(ValueError, match="z: expected a contiguous or channels_last tensor, got shape"):
            run(grad, z[..., ::2], e)
    for run in runs:
        for bad in (good[:1], good.double(), good.reshape(4, 2, 4, 4), good.reshape(2, 4, 16)):
            with pytest.raises(ValueError, match="grad: expected shape"):
                run(bad, z, e)
            for after in (False, True):
                with pytest.raises(ValueError, match="residual: expected shape"):
                    run(grad, z, e._replace(residual=bad, residual_after_act=after))
        with pytest.raises(ValueError, match="dropout: expected a probability"):
            run(grad, z, e._replace(dropout=2.0))
        with pytest.raises(ValueError, match="seed: expected"):
            run(grad, z, e._replace(seed=None, dropout=0.5))
    for bad in (means[:1], means[:, :3], means[0]):
        with pytest.raises(ValueError, match=r"means: expected \(2, 4\) or \(3, 4\), got"):
            gradients.epilogue_backward(grad, z, bad, True, True, e)


@pytest.mark.skipif(INTERPRETING or CUDA, reason="the interpreter takes CPU tensors")
def test_a_cpu_tensor_is_refused_without_the_interpreter():
    call = draw((2, 4, 4, 4), torch.float32, "NCHW")
    for run in (
        lambda: gradients.epilogue_reduce(*call),
        lambda: gradients.epilogue_backward(*call[:2], None, True, True, call[2]),
        lambda: gradients.statistics(call[1]),
    ):
        with pytest.raises(RuntimeError, match="z: expected a CUDA tensor .* on cpu"):
            run()
