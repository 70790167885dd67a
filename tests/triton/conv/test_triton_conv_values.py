"""Values of the fused Triton convolution: random draws, NaN and infinities, rounding and fp32 precision."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import triton_cases as cases
from triton_cases import (
    DESCRIPTORS,
    DTYPES,
    LAYOUTS,
    NAN,
    PATHS,
    PATHS_AND_LAYOUTS,
    POINTERS,
    on_device,
    on_gpu,
)

pytest.importorskip("triton")

from triton_conv import check, run  # noqa: E402

from atrous import reference  # noqa: E402
from atrous.core.spec import Spec  # noqa: E402
from atrous.triton_kernels import launch  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


test_under_the_interpreter = cases.interpreted(__file__, least=100)


def identity(channels, kernel, dtype, layout, value=1.0):
    """A convolution that copies its input: its middle tap is the identity."""
    call = cases.convolution((2, channels, 5, 7), channels, kernel, dtype, layout, padding=cases.same_padding(kernel))
    weight = torch.zeros_like(call.weight)
    weight[..., kernel[0] // 2, kernel[1] // 2] = torch.eye(channels, device=cases.DEVICE)
    return call._replace(weight=weight, bias=None, input=torch.full_like(call.input, value))


COPIES = {  # channels, kernel, config
    "one channel": (1, (1, 1), None),
    "flat_k": (5, (1, 1), POINTERS),
    "taps": (35, (3, 1), POINTERS),
    "persistent": (35, (1, 1), POINTERS._replace(waves=2)),
    "descriptors": (64, (1, 3), DESCRIPTORS),
}


@on_device
@pytest.mark.parametrize("seed", [(0, 0), (-1, -1), (1 << 33, 1 << 34), (123456789, 4)], ids=str)
@pytest.mark.parametrize("copy", COPIES)
def test_the_draws_are_the_oracle_s_bit_for_bit(copy, seed):
    """With z = -1 and slopes in [0, 1), y is minus the slope; the random index is that of NCHW in every layout."""
    channels, kernel, config = COPIES[copy]
    random = {"slope_kind": "random", "slope_value": 0.0, "slope_upper": 1.0, "seed": cases.seed_of(*seed)}
    for layout, wide in itertools.product(LAYOUTS, (False, True)):
        if cases.config_runs(config, layout):
            call = identity(channels, kernel, torch.float32, layout, -1.0).changed(**random)
            with mock.patch.object(launch, "INT32_ELEMENTS", 0 if wide else 2**31):
                y = run(call, layout, config)
            assert torch.equal(-y, reference.uniform(call.epilogue.seed, tuple(y.shape)))


@on_device
def test_the_draws_of_a_depthwise_convolution():
    for layout in LAYOUTS:
        call = identity(1, (3, 3), torch.float32, layout, -1.0)
        more = {"input": call.input.expand(-1, 6, -1, -1), "weight": call.weight.expand(6, -1, -1, -1), "groups": 6}
        seed = cases.seed_of(7, 1 << 35)
        call = call.changed(**more, slope_kind="random", slope_value=0.0, slope_upper=1.0, seed=seed)
        assert torch.equal(-run(call, layout), reference.uniform(seed, (2, 6, 5, 7)))


EDGES = [NAN, float("inf"), -float("inf"), 0.0, 1.0, -1.0, -2.0]


@on_device
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of inf * 0
@pytest.mark.parametrize("groups", [1, 3], ids=["one channel", "depthwise"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kind, value", [("relu", 0.0), *(("number", v) for v in (1.0, 0.25, 0.0, -0.5, 2.0)), ("tensor", 0.0)]
)
def test_nan_infinity_and_negative_zero(kind, value, dtype, groups):
    """Bit for bit what eager gives, for every pair of edge values of z and residual; ReLU(-inf) is 0, 0 * -inf is NaN.

    z is never -0.0, since its sum starts at 0; slopes produce it.
    """
    z, residual = (t.to(dtype) for t in torch.tensor([*itertools.product(EDGES, [*EDGES, -0.0])]).unbind(1))
    z, residual = (t.to(cases.DEVICE).view(1, 1, 7, 8).expand(1, groups, 7, 8).contiguous() for t in (z, residual))
    slope = torch.tensor([0.0, -1.0, 0.5], dtype=dtype, device=cases.DEVICE)[:groups]
    for after, added in itertools.product((False, True), (None, residual)):
        call = cases.Call(z, torch.ones(groups, 1, 1, 1, device=cases.DEVICE, dtype=dtype), None, Spec(groups=groups))
        call = call.changed(slope_kind=kind, slope_value=value, slope=slope, residual=added, residual_after_act=after)
        y, expected = run(call), reference.epilogue(z, call.epilogue)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        known = ~y.isnan()
        assert torch.equal(y.signbit()[known], expected.signbit()[known])


@on_device
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_a_nan_reaches_the_outputs_that_see_it_and_no_other(path, layout):
    """From corners and the middle: neighbours in memory across rows, images and channels are not read."""
    for dtype, (image, row, col) in zip(itertools.cycle(DTYPES), [(0, 4, 5), (1, 0, 0), (0, 2, 3), (1, 4, 0)]):
        call = cases.with_epilogue(PATHS[path].call(dtype, layout), layout)
        call.input[image, 1, row, col] = NAN
        seen = F.conv2d(call.input.isnan().double(), torch.ones_like(call.weight).double(), None, *call.spec)
        assert torch.equal(run(call, layout, PATHS[path].config).isnan(), seen > 0)


@on_device
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_a_channel_s_nan_stays_in_its_channel(path, layout):
    for names in (("weight", "bias", "mean"), ("var", "gamma", "beta")):
        call = cases.with_epilogue(PATHS[path].call(torch.float32, layout), layout)
        for channel, name in enumerate(names):
            call.tensors()[name][channel] = NAN
        y = run(call, layout, PATHS[path].config)
        assert y[:, :3].isnan().all() and not y[:, 3:].isnan().any()


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_nothing_is_rounded_before_the_end(path, layout):
    """In fp16 a convolution beyond its range is finite after the BatchNorm, and one near 2048 keeps its fraction."""
    call = PATHS[path].call(torch.float16, layout)
    channels = len(call.weight)
    zeros, small = torch.zeros(channels, device=cases.DEVICE), torch.full((channels,), 2.0**-10, device=cases.DEVICE)
    loud = call._replace(input=call.input * 512, weight=(call.weight * 512).clamp(-900, 900))
    # Next to a variance of 1 this eps has no effect; torch 2.11 refuses 0.
    loud = loud.changed(mean=zeros, var=zeros + 1, gamma=small, beta=zeros, eps=1e-30)
    assert loud.double().convolved().abs().max() > 65504
    check(loud, layout, PATHS[path].config)
    bias = torch.full_like(call.bias, 2048)
    check(call.changed(bias=bias, mean=zeros + 2048, var=zeros + 1, eps=1e-30), layout, PATHS[path].config)


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_fp32_precision(path, layout, precision):
    """ieee meets the narrow budget on a GPU too; without a config the call finds one that fits."""
    call = cases.with_epilogue(PATHS[path].call(torch.float32, layout), layout)
    check(call, layout)
    if precision == "ieee" and path != "descriptors":
        check(call, layout, PATHS[path].config)


@on_gpu
def test_tf32_rounds_and_ieee_does_not():
    """Each meets its own budget (`test_fp32_precision`); tf32 does not meet that of ieee."""
    call = cases.convolution((4, 128, 28, 28), 128, (3, 3), torch.float32, "NHWC", padding=(1, 1))
    with cases.precision("tf32"):
        rounded = check(call, "NHWC")
    with cases.precision("ieee"):
        check(call, "NHWC")
        with pytest.raises(AssertionError, match="over their budget"):
            cases.assert_within(rounded, call)
