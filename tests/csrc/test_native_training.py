"""Tests the training primitives of libatrous.so against the fp64 oracle and against plain torch in fp32.

On the CPU and, with --device cuda, on a GPU.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from oracle import wide
from parameters import DTYPES
from torch import Tensor

from atrous import reference
from atrous.backends import selection
from atrous.core.spec import Epilogue, accumulate_type
from atrous.ops import eager
from atrous.testing import assert_tensor

reasons = selection.reasons("native", torch.empty(0))
pytestmark = pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))
ops = torch.ops.atrous

KINDS = ("relu", "number", "tensor", "random")
NORMS = ("none", "running", "batch")
SMALL = ((2, 1, 7, 7), (1, 3, 13, 29), (2, 31, 1, 1), (2, 65, 7, 7), (9, 1), (5, 31), (2, 3, 3, 2, 4))
# Several chunks and several tiles per chunk: along the plane, the channels and the batch.
LARGE = (
    (2, 3, 101, 97),
    (2, 600, 9, 11),
    (5, 31, 13, 29),
    (70, 1, 13, 29),
    (300, 65),
    (3, 65, 2, 1, 1),
    (2, 4, 72, 72),
    (2, 4, 16, 16),
    (5, 24, 16, 16),
)


def layouts(tensor: Tensor):
    """The tensor in contiguous and in channels_last layout, if it has both."""
    nhwc = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    return [tensor, *([tensor.contiguous(memory_format=nhwc)] if nhwc else [])]


def case(z: Tensor, kind: str, place: str | None, norm: str, dropout: float) -> tuple[Tensor, Tensor | None, Epilogue]:
    """Random grad, means and epilogue arguments for this z."""
    channels, dtype = z.shape[1], z.dtype
    gamma, beta = torch.randn(2, channels).to(dtype) + 0.25
    statistics = dict(mean=torch.randn(channels).to(dtype), var=torch.rand(channels).add(0.5).to(dtype))
    if norm == "batch":
        statistics = dict(zip(("mean", "var"), eager._statistics(z)))
    e = Epilogue(
        **(statistics | dict(gamma=gamma) if norm != "none" else {}),
        beta=beta,
        slope_kind=kind,
        slope_value=0.125 if kind == "random" else -0.3,
        slope_upper=0.333,
        slope=torch.randn(channels if channels % 2 else 1).to(dtype) if kind == "tensor" else None,
        seed=torch.randint(-(2**63), 2**63 - 1, (2,)) if kind == "random" or dropout else None,
        residual=torch.randn_like(z) if place else None,
        residual_after_act=place == "after",
        dropout=dropout,
    )
    means = torch.randn(3, channels, dtype=accumulate_type(dtype)) if norm == "batch" else None
    return torch.randn_like(z) + 0.25, means, e


def check_backward(z: Tensor, grad: Tensor, means: Tensor | None, e: Epilogue) -> None:
    truth = [wide(value) for value in (grad, z, means)]
    sums = ops._epilogue_reduce(grad, z, *e)
    plain = eager._epilogue_reduce(grad, z, *e)
    assert_tensor(sums, plain, reference.epilogue_reduce(*truth[:2], wide(e)), "sums")
    assert torch.equal(sums, ops._epilogue_reduce(grad, z, *e))
    both = ops._epilogue_backward(grad, z, means, True, True, *e)
    plain = eager._epilogue_backward(grad, z, means, True, True, *e)
    for name, *three in zip(("dz", "du"), both, plain, reference.epilogue_backward(*truth, True, True, wide(e))):
        assert_tensor(*three, name)
        assert three[0].stride() == z.stride()


def check_gradients(z: Tensor, grad: Tensor, batch: bool, e: Epilogue) -> None:
    """One call gives the bits of both passes, and the vectors' gradients in the vectors' dtypes and shapes."""
    sums = ops._epilogue_reduce(grad, z, *e)
    means = sums[:2] / (z.numel() // z.shape[1]) if batch else None
    both = ops._epilogue_backward(grad, z, means, True, True, *e)
    dz, du, dgamma, dbeta, dslope = ops._epilogue_gradients(grad, z, batch, True, True, True, *e)
    assert torch.equal(dz, both[0]) and torch.equal(du, both[1]) and dz.stride() == du.stride() == z.stride()
    assert torch.equal(dbeta, sums[0].to(e.beta.dtype))
    assert dgamma.numel() == 0 if e.gamma is None else torch.equal(dgamma, sums[1].to(e.gamma.dtype))
    if e.slope_kind != "tensor":
        assert dslope.numel() == 0
    elif e.slope.numel() == z.shape[1]:
        assert torch.equal(dslope, sums[2].to(e.slope.dtype))
    else:
        torch.testing.assert_close(dslope.double(), sums[2].double().sum()[None].to(e.slope.dtype).double())


def check(z: Tensor, grad: Tensor, means: Tensor | None, e: Epilogue) -> None:
    check_backward(z, grad, means, e)
    check_gradients(z, grad, means is not None, e)
    y = ops._epilogue(z, *e)
    assert_tensor(y, eager._epilogue(z, *e), reference.epilogue(wide(z), wide(e)), "y")
    assert torch.equal(y, ops._epilogue_again(z, *e))
    if means is not None:
        mean, var = ops._statistics(z)
        expected = ops._epilogue(z, *e._replace(mean=mean, var=var)), mean, var
        results = ops._statistics_epilogue(z, *e._replace(mean=None, var=None))
        assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


@pytest.mark.parametrize("dropout", (0.0, 0.3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_both_passes_backward(kind, dtype, dropout):
    for shape, place, norm in itertools.product(SMALL, (None, "before", "after"), NORMS):
        for z in layouts((torch.randn(shape) * 2 + 1).to(dtype)):
            check(z, *case(z, kind, place, norm, dropout))


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_chunks(dtype, shape):
    for z in layouts((torch.randn(shape) * 2 + 1).to(dtype)):
        check(z, *case(z, "tensor", "before", "batch", 0.3))
        check(z, *case(z, "relu", None, "batch", 0.0))


@pytest.mark.parametrize("shape", SMALL + LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(dtype, shape):
    for z in layouts((torch.randn(shape) * 2 + 1).to(dtype)):
        results, truth = ops._statistics(z), reference.statistics(z.double())
        for name, *three in zip(("mean", "var"), results, eager._statistics(z), truth):
            assert_tensor(*three, name)
        assert all(torch.equal(a, b) for a, b in zip(results, ops._statistics(z)))


@pytest.mark.parametrize("shape", SMALL + LARGE, ids=str)
def test_a_large_mean_costs_no_digits_of_the_variance(shape):
    for z in layouts(torch.randn(shape) + 1e4):
        (mean, var), truth = ops._statistics(z), reference.statistics(z.double())
        torch.testing.assert_close(mean.double(), truth[0], rtol=1e-7, atol=0)
        torch.testing.assert_close(var.double(), truth[1], rtol=1e-5, atol=1e-6)
        grad, means, e = case(z, "number", None, "batch", 0.0)
        check_backward(z, grad, means, e._replace(mean=mean, var=var, slope_value=1.0))
    constant = torch.full(shape, 1e4 / 3)
    assert ops._statistics(constant)[1].abs().max() == 0


def test_neither_repetition_nor_the_number_of_threads_changes_a_bit():
    calls = []
    for shape, dtype in itertools.product(((3, 70, 23, 31), (2, 512, 7, 7), (1, 3, 120, 110)), DTYPES):
        for z in layouts(torch.randn(shape).to(dtype)):
            calls.append(lambda z=z: ops._statistics(z))
            for dropout in (0.0, 0.3):
                grad, means, e = case(z, "tensor", "before", "batch", dropout)
                calls.append(lambda grad=grad, z=z, e=e: [ops._epilogue_reduce(grad, z, *e)])
                calls.append(lambda grad=grad, z=z, m=means, e=e: ops._epilogue_backward(grad, z, m, True, True, *e))
    threads, expected = torch.get_num_threads(), [call() for call in calls]
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for call, results in zip(calls, expected):
                assert all(torch.equal(a, b) for a, b in zip(call(), results))
    finally:
        torch.set_num_threads(threads)


def same(result: Tensor, expected: Tensor) -> None:
    """Equal, NaN and the sign of zero included."""
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    finite = ~expected.isnan()
    assert torch.equal(result.signbit()[finite], expected.signbit()[finite])


@pytest.mark.parametrize("dropout", (0.0, 0.5, 1.0))
@pytest.mark.parametrize("kind", KINDS)
def test_special_values(kind, dropout):
    """Every pair of NaN, infinities and both zeros in z and grad; without BatchNorm both formulas round alike."""
    values = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.0, -2.0])
    z, grad = (part.reshape(1, 1, 7, 7).repeat(2, 3, 1, 1) for part in torch.meshgrid(values, values, indexing="ij"))
    e = case(z, kind, None, "none", dropout)[2]._replace(beta=None, slope_value=0.25, slope_upper=0.25)
    for grad_in, z_in in zip(layouts(grad), layouts(z)):
        for ours, plain in zip(
            (ops._epilogue(z_in, *e), *ops._epilogue_backward(grad_in, z_in, None, True, True, *e)),
            (reference.epilogue(z, e), *reference.epilogue_backward(grad, z, None, True, True, e)),
        ):
            same(ours, plain)
        torch.testing.assert_close(
            ops._epilogue_reduce(grad_in, z_in, *e), reference.epilogue_reduce(grad, z, e), equal_nan=True
        )
        assert all(part.isnan().all() for part in ops._statistics(z_in))


@pytest.mark.parametrize("kind", KINDS)
def test_one_value_that_is_not_finite_spoils_its_channel_alone(kind):
    for z in layouts(torch.randn(2, 5, 13, 29)):
        grad, means, e = case(z, kind, "before", "batch", 0.0)
        for value in (float("nan"), float("inf")):
            bad = z.clone()
            bad[1, 2, 3, 4] = value
            sums = ops._epilogue_reduce(grad, bad, *e).isfinite().all(0)
            dz = ops._epilogue_backward(grad, bad, means, True, False, *e)[0].isfinite()
            assert sums.tolist() == [True, True, False, True, True] and dz.sum() == dz.numel() - 1
            assert all(part.isfinite().tolist() == [True, True, False, True, True] for part in ops._statistics(bad))
            grad_bad = torch.where(bad == bad, grad, value)
            assert ops._epilogue_backward(grad_bad, z, None, True, False, *e)[0].isfinite().sum() >= z.numel() - 1


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (2, 5, 13, 29), (3, 65, 7, 7), (5, 31)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_lies_outside_the_tensors_is_not_used(poison, dtype, shape):
    for z in layouts(torch.randn(shape).to(dtype)):
        grad, means, e = case(z, "tensor", "before", "batch", 0.3)
        guarded = e._replace(residual=poison(e.residual))
        for call in (
            lambda grad, z, e: ops._statistics(z),
            lambda grad, z, e: [ops._epilogue_reduce(grad, z, *e)],
            lambda grad, z, e, means=means: ops._epilogue_backward(grad, z, means, True, True, *e),
        ):
            for result, expected in zip(call(poison(grad), poison(z), guarded), call(grad, z, e)):
                assert torch.equal(result, expected)


def test_what_is_not_needed_is_empty_and_means_may_have_two_rows():
    z = torch.randn(2, 5, 7, 7)
    grad, means, e = case(z, "relu", "before", "batch", 0.0)
    dz, du = ops._epilogue_backward(grad, z, means, True, True, *e)
    strided = torch.stack([means[:2], means[:2]], 2)[..., 0]
    whole = ops._epilogue_gradients(grad, z, True, True, True, True, *e)
    for needed in itertools.product((True, False), repeat=3):
        wanted = *needed[:2], needed[2], needed[2], False  # ReLU has no slope
        for result, full, want in zip(ops._epilogue_gradients(grad, z, True, *needed, *e), whole, wanted):
            assert torch.equal(result, full) if want else result.shape == (0,)
    for needed in itertools.product((True, False), repeat=2):
        for result, full, wanted in zip(ops._epilogue_backward(grad, z, strided, *needed, *e), (dz, du), needed):
            assert torch.equal(result, full) if wanted else result.shape == (0,) and result.dtype == z.dtype


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_nothing(dtype, shape):
    z = torch.randn(shape, dtype=dtype)
    wide_type, channels = accumulate_type(dtype), shape[1]
    zeros = torch.zeros(channels, dtype=wide_type)
    one = torch.ones(1, dtype=wide_type)
    e = Epilogue(zeros, zeros + 1, slope_kind="tensor", slope=one, residual=z)
    assert all(torch.equal(part, zeros) for part in ops._statistics(z))
    assert torch.equal(ops._epilogue_reduce(z, z, *e), zeros.expand(3, channels))
    means = torch.zeros(2, channels, dtype=wide_type)
    assert all(part.shape == shape for part in ops._epilogue_backward(z, z, means, True, True, *e))
    *both, dgamma, dbeta, dslope = ops._epilogue_gradients(z, z, True, True, True, True, *e._replace(gamma=zeros + 1))
    assert all(part.shape == shape for part in both) and torch.equal(dgamma, zeros) and dbeta.shape == (0,)
    assert torch.equal(dslope, one - 1)
    y, *statistics = ops._statistics_epilogue(z, *e._replace(mean=None, var=None))
    assert y.shape == shape and all(torch.equal(part, zeros) for part in statistics)


Z = torch.randn(2, 4, 5, 6)


@pytest.mark.parametrize(
    "message, grad, e",
    [
        (r"grad: expected shape \[2, 4, 5, 6\], got \[2, 4, 5, 1\]", Z[..., :1], {}),
        ("grad: expected dtype Float like z, got Double", Z.double(), {}),
        ("dropout: .* got 1.5", Z, dict(dropout=1.5)),
        ("dropout: .* got -0.5", Z, dict(dropout=-0.5)),
        ("dropout: .* got nan", Z, dict(dropout=float("nan"))),
        ("seed: expected a tensor with dropout > 0, got None", Z, dict(dropout=0.5)),
        (r"residual: expected shape", Z, dict(residual=Z[:1])),
        (r"mean: expected shape \[4\], got \[3\]", Z, dict(mean=torch.ones(3), var=torch.ones(3))),
    ],
)
def test_errors(message, grad, e):
    with pytest.raises(RuntimeError, match=message):
        ops._epilogue_reduce(grad, Z, *Epilogue(**e))
    with pytest.raises(RuntimeError, match=message):
        ops._epilogue_backward(grad, Z, None, True, True, *Epilogue(**e))
    with pytest.raises(RuntimeError, match=message):
        ops._epilogue_gradients(grad, Z, False, True, True, True, *Epilogue(**e))


def test_statistics_are_computed_not_given():
    with pytest.raises(RuntimeError, match="mean and var: expected None"):
        ops._statistics_epilogue(Z, torch.zeros(4), torch.ones(4))


@pytest.mark.parametrize(
    "message, means",
    [
        (r"means: expected shape \[2, 4\] or \[3, 4\], got \[1, 4\]", torch.ones(1, 4)),
        (r"means: expected shape .* got \[2, 5\]", torch.ones(2, 5)),
        ("means: expected dtype Float, got Double", torch.ones(2, 4).double()),
    ],
)
def test_errors_of_means(message, means):
    with pytest.raises(RuntimeError, match=message):
        ops._epilogue_backward(Z, Z, means, True, True, *Epilogue(torch.zeros(4), torch.ones(4)))


@pytest.mark.parametrize("z, message", [(Z[0, 0, 0], "z: expected at least 2-D"), (Z[..., ::2], "z: .*strides")])
def test_errors_of_z(z, message):
    with pytest.raises(RuntimeError, match=message):
        ops._statistics(z)
    with pytest.raises(RuntimeError, match=message):
        ops._epilogue_reduce(z, z, *Epilogue())
