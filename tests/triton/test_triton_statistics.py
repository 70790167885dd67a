"""The Triton convolution with fused batch statistics, against fp64 statistics of the output that it stored."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
import triton_cases as cases
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from triton_cases import DTYPES, LAYOUTS, NAN, PATHS, PATHS_AND_LAYOUTS, on_device, on_gpu

pytest.importorskip("triton")

from triton_pointwise import assert_statistics  # noqa: E402

from atrous.triton_kernels import launch  # noqa: E402
from atrous.triton_kernels.conv import configs, statistics  # noqa: E402
from atrous.triton_kernels.conv import forward as conv

PATHS_AND_LAYOUTS = [(path, layout) for path, layout in PATHS_AND_LAYOUTS if path != "splits"]
pytestmark = pytest.mark.usefixtures("poisoned_outputs")
EVERY_CONFIG = [tile._replace(waves=waves) for tile in configs.CONV for waves in configs.WAVES]


test_under_the_interpreter = cases.interpreted(__file__, least=150)


def run(call, layout="NCHW", config=None):
    return statistics.conv_statistics(*call[:4], memory_format=LAYOUTS[layout], config=config)


def truth_of(z):
    """Mean and sum of squared deviations of each channel in fp64."""
    values = z.double().transpose(0, 1).flatten(1)
    mean = values.mean(1)
    return mean, (values - mean[:, None]).square().sum(1)


def check(call, layout="NCHW", config=None):
    """Checks that z is the convolution rounded once, the statistics are those of z, and nothing is mutated."""
    with cases.unmutated(call):
        z, mean, var = run(call, layout, config)
    assert z.stride() == cases.strides(z.shape, layout)
    cases.assert_within(z, call)
    assert_statistics(z, mean, var, 2)
    return z, mean, var


@on_device
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_every_path(path, layout, dtype, bias):
    """With a bias, masked lanes hold more than 0, so counting them would show."""
    check(PATHS[path].call(dtype, layout, bias=bias), layout, PATHS[path].config)


@on_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config, layout", cases.rotate_options(EVERY_CONFIG, LAYOUTS), ids=cases.config_id)
def test_every_config(config, layout, dtype):
    cases.check_if_it_fits(check, cases.convolution_for(config, dtype, layout, (2, 2)), layout, config)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("waves", configs.WAVES)
@pytest.mark.parametrize("choice", [0, 1])
def test_every_config_of_depthwise_convolutions(choice, waves, layout):
    config = configs.DEPTHWISE[layout.lower()][choice]._replace(waves=waves)
    for dtype, multiplier in zip(DTYPES, (1, 3, 2)):
        channels = -(-(config.block_m + 3) // multiplier)
        size = (config.block_n // 35 + 1, channels, 5, 7)
        call = cases.convolution(size, channels * multiplier, (2, 3), dtype, layout, padding=(1, 1), groups=channels)
        check(call, layout, config)


GEOMETRIES = {  # size, out channels, kernel, stride, padding, dilation, groups
    "two channels": ((1, 2, 1, 3), 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "pointwise": ((2, 65, 5, 7), 7, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "stem": ((1, 3, 14, 15), 65, (7, 7), (2, 2), (3, 3), (1, 1), 1),
    "asymmetric": ((2, 7, 11, 13), 10, (1, 3), (2, 1), (0, 5), (1, 5), 1),
    "dilation of the input's size": ((1, 16, 7, 9), 5, (3, 3), (1, 1), (7, 9), (7, 9), 1),
    "outputs that see only padding": ((2, 17, 3, 4), 31, (2, 2), (1, 1), (5, 6), (1, 2), 1),
    "groups": ((2, 12, 6, 7), 20, (3, 2), (1, 2), (1, 0), (2, 1), 4),
}


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_geometries(geometry, layout):
    for dtype in DTYPES:
        size, out_channels, kernel, stride, padding, dilation, groups = GEOMETRIES[geometry]
        given = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        check(cases.convolution(size, out_channels, kernel, dtype, layout, **given), layout)


@on_device
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_drawn_cases(data):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    torch.manual_seed(data.draw(st.integers(0, 1000)))
    groups, (c_in, c_out) = data.draw(st.integers(1, 3)), pair(2, 20)
    kernel, stride, padding, dilation, size = pair(1, 4), pair(1, 3), pair(0, 5), pair(1, 5), pair(1, 12)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    assume(all(span <= extent + 2 * p for span, extent, p in zip(spans, size, padding)))
    dtype, layout = (data.draw(st.sampled_from(list(known))) for known in (DTYPES, LAYOUTS))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    size = (data.draw(st.integers(1, 3)), c_in * groups, *size)
    check(cases.convolution(size, c_out * groups, kernel, dtype, layout, **geometry), layout)


def copying(config, dtype, layout, mean, deviation):
    """A convolution that copies an input of this mean and deviation, and the slice of channels that it copies."""
    pixels = tuple(extent + 1 for extent in cases.PIXELS[config.block_n])
    call = cases.convolution_for(config, dtype, layout, (1, 1), bias=False, pixels=pixels)
    values = torch.randn(call.input.shape, device=cases.DEVICE, dtype=torch.float64) * deviation + mean
    weight = torch.eye(*call.weight.shape[:2], device=cases.DEVICE, dtype=dtype).view_as(call.weight)
    call = call._replace(weight=weight, input=cases.strided_as(values.to(dtype), layout))
    return call, slice(0, min(call.weight.shape[:2]))


@on_device
@pytest.mark.parametrize("config", configs.CONV, ids=cases.config_id)
def test_a_mean_that_dwarfs_the_deviation(config):
    """E[x^2] - E[x]^2 in fp32 would be wrong by several units. Under tf32 the stored z differs from the input."""

    def check(call, layout, config):
        z, mean, var = run(call, layout, config)
        true_mean, true_m2 = truth_of(z)
        true_var = true_m2 / (z.numel() // z.shape[1])
        assert (true_var[copied] > 0.5).all()
        torch.testing.assert_close(mean.double(), true_mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(var.double()[copied], true_var[copied], rtol=1e-3, atol=0)
        assert not var[copied.stop :].any()  # constant: the identity has no row for them

    for layout in LAYOUTS:
        if cases.config_runs(config, layout):
            call, copied = copying(config, torch.float32, layout, 1e4, 1.0)
            cases.check_if_it_fits(check, call, layout, config)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_statistics_are_of_the_stored_values(layout):
    """Near 1000 fp16 has steps of 0.5, so rounding changes the variance."""
    call, copied = copying(cases.POINTERS, torch.float16, layout, 0.0, 0.1)
    call = call._replace(bias=torch.full_like(call.weight[:, 0, 0, 0], 1000))
    z, mean, var = check(call, layout, cases.POINTERS)
    unrounded = truth_of(call.double().convolved())[1] / (z.numel() // z.shape[1])
    assert ((var / unrounded)[copied] - 1).abs().mean() > 0.2  # far more than the error budget


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_the_same_call_gives_the_same_bits(path, layout):
    for dtype in DTYPES:
        call = PATHS[path].call(dtype, layout)
        first, second = (run(call, layout, PATHS[path].config) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second))


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_value_per_channel(layout):
    """The mean is that value and the variance is 0."""
    for dtype in DTYPES:
        call = cases.convolution((1, 20, 2, 3), 7, (2, 3), dtype, layout)
        z, mean, var = run(call, layout)
        assert torch.equal(mean, z.flatten().float()) and not var.any()


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_batch(layout):
    call = PATHS["taps"].call(torch.float32, layout)
    z, mean, var = run(call._replace(input=call.input[:0]), layout)
    assert z.shape == (0, 9, 5, 8) and z.stride() == cases.strides(z.shape, layout)
    assert all(torch.equal(vector, torch.zeros(9, device=cases.DEVICE)) for vector in (mean, var))


@on_device
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_a_channel_s_nan_stays_in_its_channel(path, layout):
    call = PATHS[path].call(torch.float32, layout)
    call.weight[2] = NAN
    for result in run(call, layout, PATHS[path].config)[1:]:
        assert result[2].isnan() and not torch.cat([result[:2], result[3:]]).isnan().any()


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_nothing_outside_the_tensors_is_read_or_written(path, layout, poison):
    margin = 64 if path == "descriptors" else 67
    call = PATHS[path].call(torch.float32, layout)
    call = call._replace(weight=cases.strided_as(call.weight, "NHWC"))  # the kernel's layout: not copied first
    check(call.map(lambda tensor: poison(tensor, margin)), layout, PATHS[path].config)


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_64_bit_offsets(path, layout):
    with mock.patch.object(launch, "INT32_ELEMENTS", 0):
        check(PATHS[path].call(torch.float16, layout), layout, PATHS[path].config)


@on_device
def test_operands_of_the_other_layout():
    for layout, other in itertools.permutations(LAYOUTS):
        call = PATHS["taps"].call(torch.float16, layout)
        check(call._replace(input=cases.strided_as(call.input, other)), layout)
        check(call._replace(weight=cases.strided_as(call.weight, other)), layout)


@on_device
def test_refusals():
    call = PATHS["taps"].call(torch.float32, "NCHW")
    for dtype in (torch.float64, torch.int32):
        with pytest.raises(TypeError, match=f"input: expected .*got {dtype}"):
            run(call.map(lambda tensor: tensor.to(dtype)))  # noqa: B023
    for layout, path in (("NHWC", "splits"), ("NCHW", "splits"), ("NCHW", "descriptors")):
        with pytest.raises(ValueError, match="config: "):
            run(PATHS[path].call(torch.float32, layout), layout, PATHS[path].config)
    with pytest.raises(ValueError, match="config: .*splits"):
        config = cases.DESCRIPTORS._replace(splits=2)
        run(cases.convolution_for(config, torch.float16, "NHWC", (3, 3)), "NHWC", config)


@on_gpu
@pytest.mark.parametrize(
    "config, dtype, layout", cases.rotate_options(EVERY_CONFIG, DTYPES, ["NHWC"]), ids=cases.config_id
)
def test_large_tensors(config, dtype, layout):
    """Partial statistics of many tiles are combined in the same order each time."""
    call = cases.convolution((32, 64, 57, 61), 136, (3, 3), dtype, layout, padding=(1, 1))
    cases.check_if_it_fits(check, call, layout, config)
    result = run(call, layout, config)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(call, layout, config), result))


@on_gpu
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_cuda_graph(path, layout):
    call, config = PATHS[path].call(torch.bfloat16, layout), PATHS[path].config
    expected = run(call, layout, config)  # compiles, which a capture must not
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        result = run(call, layout, config)
    for _ in range(2):
        for tensor in result:
            tensor.zero_()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(result, expected))


@on_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_torch_s_default_dtype_is_not_the_workspace_s(dtype):
    """Split-K sums and partial statistics are fp32, whatever torch's default dtype is."""
    call = cases.PATHS["splits"].call(torch.float32, "NHWC")
    config = cases.PATHS["splits"].config
    ended = cases.with_epilogue(call, "NHWC")
    expected, (_, *statistics_before) = (
        conv.conv_epilogue(*ended, memory_format=LAYOUTS["NHWC"], config=config),
        run(call, "NHWC"),
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        y, (_, *result) = conv.conv_epilogue(*ended, memory_format=LAYOUTS["NHWC"], config=config), run(call, "NHWC")
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(y, expected)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(result, statistics_before))
