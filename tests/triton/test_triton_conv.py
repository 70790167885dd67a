"""The fused Triton convolution against the fp64 oracle, on a GPU or on the CPU under Triton's interpreter.

The polyphase identity is a second oracle, without dilation. triton_cases.py has the calls and the error budget.
"""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import triton_cases as cases
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from triton_cases import (
    DESCRIPTORS,
    DTYPES,
    INTERPRETING,
    LAYOUTS,
    NAN,
    PATHS,
    PATHS_AND_LAYOUTS,
    POINTERS,
    on_device,
    on_gpu,
)

pytest.importorskip("triton")

from atrous import reference  # noqa: E402
from atrous.triton_kernels import launch  # noqa: E402
from atrous.triton_kernels.conv import configs  # noqa: E402
from atrous.triton_kernels.conv import forward as conv

SPLIT = [tile._replace(splits=splits) for splits in configs.SPLITS if splits > 1 for tile in configs.CONV]
WHOLE = [tile._replace(waves=waves) for waves in configs.WAVES for tile in configs.CONV]


@pytest.mark.skipif(INTERPRETING, reason="already in the interpreter's process")
def test_under_the_interpreter(capsys):
    cases.interpret(__file__, capsys=capsys, least=600)


@pytest.fixture(autouse=True)
def poisoned_outputs():
    with cases.poisoned_outputs():
        yield


@pytest.fixture(params=["tf32", "ieee"])
def precision(request):
    """Torch's precision setting of fp32 convolutions."""
    with cases.precision(request.param):
        yield request.param


def run(call, layout="NCHW", config=None):
    return conv.conv_epilogue(*call, memory_format=LAYOUTS[layout], config=config)


def check(call, layout="NCHW", config=None, truth=None):
    """Returns y after checking its error against the oracle, its strides, and that nothing was mutated."""
    with cases.unmutated(call):
        y = run(call, layout, config)
    assert y.stride() == cases.strides(y.shape, layout)
    cases.assert_within(y, call, truth)
    return y


@on_device
@pytest.mark.parametrize("residual", cases.RESIDUALS)
@pytest.mark.parametrize("slope_kind", cases.SLOPE_KINDS)
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_every_epilogue_on_every_path(path, layout, slope_kind, residual):
    config = PATHS[path].config
    for dtype in DTYPES if (slope_kind, residual) == ("tensor", "before") else DTYPES[:1]:
        call = cases.with_epilogue(PATHS[path].call(dtype, layout), layout, slope_kind, residual)
        if cases.config_runs(config, layout, draws=slope_kind == "random"):
            check(call, layout, config)
        else:
            check(call, layout)
            with pytest.raises(ValueError, match="config: .*splits=1 with the epilogue .random"):
                run(call, layout, config)


GEOMETRIES = {  # size, out channels, kernel, stride, padding, dilation, groups
    "one pixel": ((1, 1, 1, 1), 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "pointwise": ((2, 65, 5, 7), 7, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "pointwise strided": ((2, 31, 7, 7), 65, (1, 1), (2, 3), (0, 0), (1, 1), 1),
    "plain": ((2, 33, 9, 13), 31, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "stem": ((1, 3, 14, 15), 65, (7, 7), (2, 2), (3, 3), (1, 1), 1),
    "asymmetric": ((2, 7, 11, 13), 10, (1, 3), (2, 1), (0, 5), (1, 5), 1),
    "asymmetric, rows": ((2, 17, 13, 6), 3, (4, 2), (1, 3), (3, 1), (2, 4), 1),
    "dilation of the input's size": ((1, 16, 7, 9), 5, (3, 3), (1, 1), (7, 9), (7, 9), 1),
    "dilation up to the input's size, unpadded": ((3, 7, 7, 9), 5, (2, 3), (1, 1), (0, 0), (6, 4), 1),
    "kernel larger than the input": ((1, 3, 3, 4), 7, (5, 7), (1, 1), (2, 3), (1, 1), 1),
    "outputs that see only padding": ((2, 17, 3, 4), 7, (2, 2), (1, 1), (5, 6), (1, 2), 1),
    "stride larger than the kernel": ((2, 16, 11, 13), 7, (2, 1), (4, 5), (1, 0), (1, 1), 1),
    "one output pixel": ((3, 20, 7, 5), 7, (7, 5), (1, 1), (0, 0), (1, 1), 1),
    "groups": ((2, 12, 6, 7), 20, (3, 2), (1, 2), (1, 0), (2, 1), 4),
    "wide groups": ((1, 66, 5, 6), 14, (2, 3), (1, 1), (1, 1), (1, 1), 2),
    "one output channel per group": ((2, 6, 5, 6), 3, (2, 3), (1, 1), (1, 1), (1, 1), 3),
    "depthwise": ((2, 31, 9, 7), 31, (3, 3), (1, 1), (1, 1), (1, 1), 31),
    "depthwise of many channels": ((2, 130, 5, 3), 130, (3, 2), (1, 1), (1, 1), (1, 1), 130),
    "depthwise, all asymmetric": ((2, 7, 13, 11), 7, (2, 5), (3, 1), (1, 4), (2, 3), 7),
    "depthwise, dilation of the input's size": ((1, 3, 7, 9), 3, (3, 3), (1, 1), (7, 9), (7, 9), 3),
    "depthwise, outputs that see only padding": ((2, 3, 3, 2), 3, (2, 2), (1, 1), (5, 4), (1, 2), 3),
    "multiplier": ((2, 7, 9, 8), 21, (3, 3), (2, 2), (1, 1), (1, 1), 7),
    "multiplier of one channel": ((2, 1, 9, 8), 65, (3, 3), (1, 1), (1, 1), (2, 1), 1),
}


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_geometries(geometry, layout):
    size, out_channels, kernel, stride, padding, dilation, groups = GEOMETRIES[geometry]
    for dtype, bias in zip(DTYPES[-2:], (False, True)):
        given = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        call = cases.convolution(size, out_channels, kernel, dtype, layout, **given, bias=bias)
        check(cases.with_epilogue(call, layout), layout)


@on_device
@pytest.mark.parametrize("channels", [1, 3, 7, 31, 65])
@pytest.mark.parametrize("out_channels", [1, 3, 7, 31, 65])
def test_odd_channels(channels, out_channels):
    for layout, dtype in zip(LAYOUTS, (torch.float16, torch.float32)):
        check(cases.convolution((2, channels, 4, 5), out_channels, (2, 2), dtype, layout), layout)


@on_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config, layout", cases.rotate_options(WHOLE, LAYOUTS), ids=cases.config_id)
def test_every_config(config, layout, dtype):
    """Two tiles along each axis, none of them full, and two steps per tap."""
    call = cases.convolution_for(config, dtype, layout, (2, 2), blocks=2)
    cases.check_if_it_fits(check, cases.with_epilogue(call, layout), layout, config)


@on_device
@pytest.mark.parametrize("config, dtype, layout", cases.rotate_options(SPLIT, DTYPES, LAYOUTS), ids=cases.config_id)
def test_every_split(config, dtype, layout):
    """The splits do not divide the steps; with few splits there are several tiles."""
    several_tiles = config.splits <= 4
    pixels = {} if several_tiles or not INTERPRETING else {"pixels": (1, 5, 7)}
    call = cases.convolution_for(
        config, dtype, layout, cases.SPLIT_KERNELS[config.splits], tiles=2 if several_tiles else 1, **pixels
    )
    if config.accumulators > (64 if config.descriptors else 32):  # registers also hold the partial sums
        with pytest.raises(ValueError, match="config: .*accumulators per thread"):
            run(call, layout, config)
    else:
        cases.check_if_it_fits(check, cases.with_epilogue(call, layout), layout, config)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("waves", configs.WAVES)
@pytest.mark.parametrize("choice", [0, 1])
def test_every_config_of_depthwise_convolutions(choice, waves, layout):
    """With and without a multiplier; neither pixels nor channels fill a tile."""
    config = configs.DEPTHWISE[layout.lower()][choice]._replace(waves=waves)
    for dtype, multiplier in zip(DTYPES, (1, 3, 2)):
        channels = -(-(config.block_m + 3) // multiplier)
        size = (config.block_n // 35 + 1, channels, 5, 7)
        geometry = {"padding": (1, 1), "groups": channels}
        call = cases.convolution(size, channels * multiplier, (3, 3), dtype, layout, **geometry)
        check(cases.with_epilogue(call, layout), layout, config)


BULK = [config for config in WHOLE if config.descriptors]
if INTERPRETING:  # the larger persistent configs take long there
    BULK = [config for config in BULK if not config.waves or config.block_n == 64]


@on_device
@cases.on_sm_90
@pytest.mark.parametrize("config", BULK, ids=cases.config_id)
@pytest.mark.parametrize(
    "stride, dilation, padding", [((2, 2), (1, 1), (1, 1)), ((2, 2), (2, 3), (3, 2)), ((1, 1), (3, 8), (4, 8))]
)
def test_descriptors_over_strides_and_dilations(config, stride, dilation, padding):
    """Boxes hang over every edge; with stride 2 taps' rows and columns have every parity, with two steps per tap."""
    for dtype in DTYPES if config.block_n == 64 or not INTERPRETING else DTYPES[:1]:
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        call = cases.convolution_for(config, dtype, "NHWC", (3, 3), stride[0], tiles=1, pixels=(3, 6, 10), **geometry)
        cases.check_if_it_fits(check, cases.with_epilogue(call, "NHWC", "relu", "none"), "NHWC", config)


@on_device
@cases.on_sm_90
@pytest.mark.parametrize("block_n, box", [(n, box) for n, boxes in configs.BOXES.items() for box in boxes], ids=str)
def test_every_box(block_n, box):
    """Two boxes along images and rows, the second nearly empty, and one along columns that is not full."""
    config = next(config for config in configs.CONV if config.descriptors and config.block_n == block_n)
    pixels = (box[0] + 1, box[1] + 1, max(1, box[2] - 1))
    call = cases.convolution_for(config, torch.float16, "NHWC", (1, 3), tiles=1, pixels=pixels)
    with mock.patch.object(configs, "box", lambda key, block_n: box):
        cases.check_if_it_fits(check, cases.with_epilogue(call, "NHWC"), "NHWC", config)


@on_device
def test_splits_of_steps_that_hold_several_taps():
    for dtype, layout in itertools.product(DTYPES, LAYOUTS):
        call = cases.convolution((2, 7, 5, 9), 9, (5, 9), dtype, layout, padding=(2, 4))
        check(cases.with_epilogue(call, layout), layout, POINTERS._replace(splits=2))


def hardest_slopes(path, layout):
    """Random slopes if the path supports them, else a tensor."""
    return "random" if cases.config_runs(PATHS[path].config, layout, draws=True) else "tensor"


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_the_same_call_gives_the_same_bits(path, layout):
    for dtype in DTYPES if not INTERPRETING else DTYPES[:1]:
        call = cases.with_epilogue(PATHS[path].call(dtype, layout), layout, hardest_slopes(path, layout))
        assert torch.equal(run(call, layout, PATHS[path].config), run(call, layout, PATHS[path].config))


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_64_bit_offsets(path, layout):
    with mock.patch.object(launch, "INT32_ELEMENTS", 0):
        for dtype in DTYPES:
            check(
                cases.with_epilogue(PATHS[path].call(dtype, layout), layout, hardest_slopes(path, layout)),
                layout,
                PATHS[path].config,
            )


# Dilation


def polyphase(call):
    """A convolution of dilation d as d * d dense ones: output pixels congruent modulo d depend only on input pixels
    that are congruent modulo d."""
    input, weight, bias, _, (top, left), (down, right), groups = call.double().convolution
    padded = F.pad(input, (left, left, top, top))
    rows, cols = (padded.shape[2 + i] - call.dilation[i] * (weight.shape[2 + i] - 1) for i in (0, 1))
    z = padded.new_zeros(len(input), len(weight), rows, cols)
    for i, j in itertools.product(range(min(down, rows)), range(min(right, cols))):
        z[..., i::down, j::right] = F.conv2d(padded[..., i::down, j::right], weight, bias, groups=groups)
    return z[..., :: call.stride[0], :: call.stride[1]]


DILATED = {  # size, out channels, kernel, stride, padding, dilation, groups
    "square": ((2, 16, 9, 13), 7, (3, 3), (1, 1), (2, 2), (2, 2), 1),
    "asymmetric": ((1, 35, 10, 11), 7, (3, 2), (1, 1), (0, 4), (2, 5), 1),
    "strided": ((2, 7, 9, 13), 7, (3, 3), (2, 3), (3, 4), (3, 4), 1),
    "dilation of the input's size": ((2, 5, 5, 6), 9, (3, 3), (1, 1), (5, 6), (5, 6), 1),
    "groups": ((1, 12, 9, 7), 4, (2, 3), (1, 1), (1, 2), (4, 2), 2),
    "depthwise": ((2, 9, 9, 13), 9, (3, 3), (1, 1), (4, 2), (4, 2), 9),
}


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", DILATED)
def test_polyphase_identity(geometry, layout):
    size, out_channels, kernel, stride, padding, dilation, groups = DILATED[geometry]
    for dtype in DTYPES:
        given = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        call = cases.convolution(size, out_channels, kernel, dtype, layout, **given)
        check(call, layout, truth=polyphase(call))


@on_device
@cases.on_sm_90
def test_polyphase_identity_with_descriptors():
    for dtype in DTYPES:
        call = PATHS["descriptors"].call(dtype, "NHWC", dilation=(3, 4), padding=(3, 2))
        check(call, "NHWC", DESCRIPTORS, polyphase(call))


@on_device
@pytest.mark.parametrize(
    "path, layout", [way for way in PATHS_AND_LAYOUTS if way[0] in ("flat_k", "taps", "descriptors", "depthwise")]
)
def test_polyphase_identity_within_the_kernel(path, layout):
    """The kernel's dense convolutions of the interleaved grids, put together, equal its dilated convolution."""
    (down, right), (top, left) = dilation, padding = (2, 3), (2, 3)
    call = PATHS[path].call(torch.float32, layout, dilation=dilation, padding=padding)
    whole = check(call, layout, PATHS[path].config)
    padded = F.pad(call.input, (left, left, top, top))
    for i, j in itertools.product(range(down), range(right)):
        grid = cases.strided_as(padded[..., i::down, j::right], layout)
        dense = run(call._replace(input=grid, padding=(0, 0), dilation=(1, 1)), layout, PATHS[path].config)
        part = whole[..., i::down, j::right]
        assert dense.shape == part.shape
        torch.testing.assert_close(dense, part, rtol=0, atol=1e-2 if cases.tf32(torch.float32) else 2e-6)


@on_device
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_drawn_cases(data):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    torch.manual_seed(data.draw(st.integers(0, 1000)))
    groups, (c_in, c_out) = data.draw(st.integers(1, 3)), pair(1, 20)
    kernel, stride, padding, dilation, size = pair(1, 4), pair(1, 3), pair(0, 5), pair(1, 5), pair(1, 12)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    assume(all(span <= extent + 2 * p for span, extent, p in zip(spans, size, padding)))
    dtype, layout, of_input = (data.draw(st.sampled_from(list(known))) for known in (DTYPES, LAYOUTS, LAYOUTS))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    batch, bias, norm, shared = data.draw(st.tuples(st.integers(1, 3), *[st.booleans()] * 3))
    call = cases.convolution(
        (batch, c_in * groups, *size), c_out * groups, kernel, dtype, of_input, **geometry, bias=bias
    )
    kind, residual = (data.draw(st.sampled_from(known)) for known in (cases.SLOPE_KINDS, cases.RESIDUALS))
    check(cases.with_epilogue(call, layout, kind, residual, norm, shared), layout)


# Operands


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_nothing_outside_the_tensors_is_read_or_written(path, layout, poison):
    """Operands are surrounded by NaN, at an odd offset where no descriptor needs alignment; none is copied first."""
    margin = 64 if path == "descriptors" else 67
    call = cases.with_epilogue(PATHS[path].call(torch.float32, layout), layout)
    call = call._replace(weight=cases.strided_as(call.weight, "NHWC"))
    inside = call.map(lambda tensor: poison(tensor, margin) if tensor.is_floating_point() else tensor)
    check(inside, layout, PATHS[path].config)


@on_device
@cases.on_sm_90
@pytest.mark.parametrize("name", ["input", "weight", "residual"])
def test_an_unaligned_base_goes_without_descriptors(name, poison):
    """One unaligned address of three suffices."""
    call = cases.with_epilogue(PATHS["descriptors"].call(torch.float16, "NHWC"), "NHWC")
    if name == "weight":  # in the kernel's layout, so that it is not copied
        call = call._replace(weight=call.weight.contiguous(memory_format=torch.channels_last))
    call = call._replace(**{name: poison(getattr(call, name))})
    check(call, "NHWC")
    with pytest.raises(ValueError, match="config: .*aligned"):
        run(call, "NHWC", DESCRIPTORS)


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_operands_of_the_other_layout(path, layout):
    """For the input, and for input and weight: the layout of y does not depend on theirs."""
    other = next(k for k in LAYOUTS if k != layout)
    call = cases.with_epilogue(PATHS[path].call(torch.float16, layout), layout)
    expected = check(call, layout, PATHS[path].config)
    input, weight = (cases.strided_as(tensor, other) for tensor in (call.input, call.weight))
    for changed in ({"input": input}, {"weight": weight.contiguous(memory_format=torch.channels_last), "input": input}):
        assert torch.equal(check(call._replace(**changed), layout, PATHS[path].config), expected)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", ["taps", "depthwise"])
def test_sliced_transposed_and_expanded_operands(path, layout):
    call = PATHS[path].call(torch.float32, layout)
    wide = torch.randn(2, call.input.shape[1] + 3, 9, 17, device=cases.DEVICE)
    for input in (wide[:, 2:-1, 1:-1, ::2], wide[:, :-3].mT, call.input[:1].expand(2, -1, -1, -1), wide.flip(1)[:, 3:]):
        check(call._replace(input=input), layout)
    double_weight = torch.randn(*call.weight.shape[:2], 2, 6, device=cases.DEVICE)
    for weight in (double_weight[..., ::2], call.weight[:, :1].expand_as(call.weight), call.weight.mT.contiguous().mT):
        check(call._replace(weight=weight), layout)


@on_device
@pytest.mark.parametrize("path", PATHS)
def test_vectors_of_any_dtype_and_stride(path):
    for vectors in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        call = cases.with_epilogue(PATHS[path].call(torch.float16, "NHWC"), "NHWC", vectors=vectors)
        check(call, "NHWC", PATHS[path].config)
    channels = call.weight.shape[0]
    pairs = torch.stack([call.mean, call.mean + 1], 1)
    strided = {"mean": pairs[:, 0], "var": call.var[:1].expand(channels), "slope": pairs[:, 1].half()}
    call = call._replace(**strided, gamma=call.gamma.flip(0).half(), beta=torch.stack([call.beta] * 3)[1])
    check(call, "NHWC", PATHS[path].config)


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_absent_operands(path, layout):
    """No bias, no BatchNorm, no gamma, no beta; one slope for all channels."""
    for bias, norm, gamma, beta in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 0), (1, 1, 0, 1)]:
        call = cases.with_epilogue(PATHS[path].call(torch.float16, layout, bias=bias), layout, norm=norm, shared=True)
        call = call._replace(gamma=call.gamma if gamma else None, beta=call.beta if beta else None)
        check(call, layout, PATHS[path].config)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_batch(layout):
    for path, dtype in itertools.product(PATHS.values(), DTYPES):
        full = path.call(dtype, layout)
        call = cases.with_epilogue(full._replace(input=cases.strided_as(full.input[:0], layout)), layout)
        y = run(call, layout)
        assert y.shape == F.conv2d(*call.double().convolution).shape and y.dtype == dtype and not y.numel()
        assert y.stride() == cases.strides(y.shape, layout)


# Values


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
            call = identity(channels, kernel, torch.float32, layout, -1.0)._replace(**random)
            with mock.patch.object(launch, "INT32_ELEMENTS", 0 if wide else 2**31):
                y = run(call, layout, config)
            assert torch.equal(-y, reference.uniform(call.seed, tuple(y.shape)))


@on_device
def test_the_draws_of_a_depthwise_convolution():
    for layout in LAYOUTS:
        call = identity(1, (3, 3), torch.float32, layout, -1.0)
        more = {"input": call.input.expand(-1, 6, -1, -1), "weight": call.weight.expand(6, -1, -1, -1), "groups": 6}
        seed = cases.seed_of(7, 1 << 35)
        call = call._replace(**more, slope_kind="random", slope_value=0.0, slope_upper=1.0, seed=seed)
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
        call = cases.Call(
            z, torch.ones(groups, 1, 1, 1, device=cases.DEVICE, dtype=dtype), None, (1, 1), (0, 0), (1, 1), groups
        )
        call = call._replace(slope_kind=kind, slope_value=value, slope=slope, residual=added, residual_after_act=after)
        y, expected = run(call), reference.epilogue(z, *call[7:])
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
        seen = F.conv2d(call.input.isnan().double(), torch.ones_like(call.weight).double(), None, *call[3:7])
        assert torch.equal(run(call, layout, PATHS[path].config).isnan(), seen > 0)


@on_device
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_a_channel_s_nan_stays_in_its_channel(path, layout):
    for names in (("weight", "bias", "mean"), ("var", "gamma", "beta")):
        call = cases.with_epilogue(PATHS[path].call(torch.float32, layout), layout)
        for channel, name in enumerate(names):
            getattr(call, name)[channel] = NAN
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
    loud = loud._replace(mean=zeros, var=zeros + 1, gamma=small, beta=zeros, eps=1e-30)
    assert F.conv2d(*loud.double().convolution).abs().max() > 65504
    check(loud, layout, PATHS[path].config)
    bias = torch.full_like(call.bias, 2048)
    check(call._replace(bias=bias, mean=zeros + 2048, var=zeros + 1, eps=1e-30), layout, PATHS[path].config)


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_fp32_precision(path, layout, precision):
    """ieee meets the narrow budget on a GPU too; without a config the call finds one that fits."""
    call = cases.with_epilogue(PATHS[path].call(torch.float32, layout), layout)
    check(call, layout)
    if precision == "ieee" and path != "descriptors":
        check(call, layout, PATHS[path].config)


@on_device
@pytest.mark.parametrize("precision", ["ieee"], indirect=True)
@pytest.mark.parametrize("config", configs.CONV, ids=cases.config_id)
def test_configs_of_ieee(precision, config):
    """Configs that need tensor cores or exceed the registers are refused; the setting has no effect on fp16."""
    call = cases.convolution_for(config, torch.float32, "NHWC", (1, 2))
    if not config.descriptors and config.accumulators <= 16:
        check(call, "NHWC", config)
    else:
        with pytest.raises(ValueError, match="config: .*(tensor cores|accumulators per thread)"):
            run(call, "NHWC", config)
    if cases.config_runs(config):
        cases.check_if_it_fits(check, cases.convolution_for(config, torch.float16, "NHWC", (1, 2)), "NHWC", config)


# Refusals


@on_device
@pytest.mark.parametrize("path", ["taps", "depthwise"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool], ids=str)
def test_refused_dtypes(dtype, path):
    call = PATHS[path].call(torch.float32, "NCHW").map(lambda tensor: tensor.to(dtype))
    with pytest.raises(TypeError, match=f"input: expected .*got {dtype}"):
        run(call)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", ["taps", "depthwise"])
def test_refused_residuals(path, layout):
    call = cases.with_epilogue(PATHS[path].call(torch.float32, layout), layout)
    other = next(k for k in LAYOUTS if k != layout)
    good = call.residual
    wrong = [good[:1], good[:, :1], good[..., :-1], good.half(), good.double(), cases.strided_as(good, other)]
    for bad in (*wrong, good[:1].expand_as(good), torch.cat([good, good])[::2], good[0]):
        with pytest.raises(ValueError, match="residual: expected"):
            run(call._replace(residual=bad), layout)


@on_device
def test_dropout_is_refused():
    """Dropout is for training, which needs z; this kernel does not store it."""
    call = cases.with_epilogue(PATHS["taps"].call(torch.float32, "NHWC"), "NHWC")
    layout = {"memory_format": torch.channels_last}
    assert torch.equal(conv.conv_epilogue(*call, 0.0, **layout), conv.conv_epilogue(*call, **layout))
    with pytest.raises(ValueError, match="dropout: expected 0 .*, got 0.5"):
        conv.conv_epilogue(*call, 0.5, **layout)


REFUSED = [  # config, layout, changes to a call of 64 channels, part of the message
    (POINTERS._replace(block_m=32), "NCHW", {}, "of the lists"),
    (POINTERS._replace(splits=3), "NCHW", {}, "of the lists"),
    (POINTERS._replace(waves=1), "NCHW", {}, "of the lists"),
    (configs.DEPTHWISE["nchw"][0], "NCHW", {}, "of the lists"),
    (POINTERS, "NCHW", {"groups": 64, "out_channels": 64}, "of the lists"),
    (POINTERS._replace(splits=4), "NCHW", {}, "steps per split"),  # 6 taps of 2 steps
    (POINTERS._replace(splits=2, waves=2), "NCHW", {}, "splits or waves"),
    (DESCRIPTORS, "NCHW", {}, "channels_last"),
    (DESCRIPTORS, "NHWC", {"groups": 2}, "groups=1"),
    (DESCRIPTORS, "NHWC", {"channels": 72}, "input channels divisible by 64"),
    (DESCRIPTORS, "NHWC", {"out_channels": 9}, "output channels divisible by 16 bytes"),
    (DESCRIPTORS, "NHWC", {"stride": (2, 1)}, "stride 1"),
    (DESCRIPTORS, "NHWC", {"stride": (3, 3)}, "stride 1"),
    (DESCRIPTORS, "NHWC", {"stride": (2, 2), "size": (8, 9)}, "even H and W"),
    (DESCRIPTORS, "NHWC", {"stride": (2, 2), "size": (7, 10)}, "even H and W"),
]


@on_device
@pytest.mark.parametrize("config, layout, changed, message", REFUSED, ids=cases.config_id)
def test_refused_configs(config, layout, changed, message):
    geometry = {name: changed[name] for name in ("stride", "groups") if name in changed}
    size = (2, changed.get("channels", 64), *changed.get("size", (8, 10)))
    call = cases.convolution(size, changed.get("out_channels", 24), (2, 3), torch.float16, layout, **geometry)
    with pytest.raises(ValueError, match=f"config: .*{message}"):
        run(call, layout, config)


@pytest.mark.skipif(INTERPRETING, reason="the interpreter takes CPU tensors")
@pytest.mark.parametrize("path", ["taps", "depthwise"])
def test_a_cpu_tensor_is_refused_without_the_interpreter(path):
    with mock.patch.object(cases, "DEVICE", "cpu"), pytest.raises(RuntimeError, match="input: expected a CUDA tensor"):
        run(PATHS[path].call(torch.float32, "NCHW"))


# On a GPU


@on_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 96], ids=["dense", "grouped", "depthwise"])
def test_large_tensors(groups, dtype, layout):
    for kind, kernel in itertools.product(cases.SLOPE_KINDS, [(3, 3), (1, 1)]):
        geometry = {"padding": cases.same_padding(kernel, (2, 2)), "dilation": (2, 2), "groups": groups}
        check(
            cases.with_epilogue(
                cases.convolution((16, 96, 57, 61), 192, kernel, dtype, layout, **geometry), layout, kind
            ),
            layout,
        )


@on_gpu
@pytest.mark.parametrize(
    "config, dtype, layout", cases.rotate_options(WHOLE + SPLIT, DTYPES, ["NHWC"]), ids=cases.config_id
)
def test_every_config_on_large_tensors(config, dtype, layout):
    """Pipelines fill and persistent programs take several tiles; a second call gives the same bits."""
    call = cases.with_epilogue(cases.convolution((8, 512, 28, 30), 264, (3, 3), dtype, layout, padding=(1, 1)), layout)
    cases.check_if_it_fits(check, call, layout, config)
    assert torch.equal(run(call, layout, config), run(call, layout, config))


@on_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 64], ids=["dense", "depthwise"])
def test_more_elements_than_int32_counts(groups, layout):
    """The first and the last image of 2.7e9 elements are right."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    call = cases.convolution((1, 64, 1024, 1024), 64, (3, 3), torch.float16, layout, padding=(1, 1), groups=groups)
    many = torch.empty(40, 64, 1024, 1024, dtype=torch.float16, device="cuda", memory_format=LAYOUTS[layout])
    many.copy_(call.input.expand_as(many))
    y = run(call._replace(input=many), layout)
    cases.assert_within(y[-1:], call)
    assert all(torch.equal(one, y[-1]) for one in (y[0], y[33], y[38]))


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


@on_gpu
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_cuda_graph(path, layout):
    call = cases.with_epilogue(PATHS[path].call(torch.bfloat16, layout), layout)
    config = PATHS[path].config
    expected = run(call, layout, config)  # compiles, which a capture must not
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        y = run(call, layout, config)
    for _ in range(2):  # the workspace of one replay does not affect the next
        y.zero_()
        graph.replay()
        assert torch.equal(y, expected)
    call.input.copy_(torch.randn_like(call.input))
    graph.replay()
    cases.assert_within(y, call)


@on_gpu
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_stream_that_is_not_the_default_one(path, layout):
    call, config = cases.with_epilogue(PATHS[path].call(torch.bfloat16, layout), layout), PATHS[path].config
    expected = run(call, layout, config)
    stream = torch.cuda.Stream()
    input = torch.full_like(call.input, NAN)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        input.copy_(call.input)
        y = run(call._replace(input=input), layout, config)
    stream.synchronize()
    assert torch.equal(y, expected)


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_device_that_is_not_the_current_one(path, layout):
    with mock.patch.object(cases, "DEVICE", "cuda:1"):
        check(cases.with_epilogue(PATHS[path].call(torch.bfloat16, layout), layout), layout, PATHS[path].config)
    assert torch.cuda.current_device() == 0


@on_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", [path for path in PATHS if path != "descriptors"])
def test_sizes_that_change_do_not_recompile(path, layout):
    """Sizes of 1 and multiples of 16 would specialize. The config is fixed: the predicted one depends on the size."""
    config = PATHS[path].config or configs.DEPTHWISE[layout.lower()][0]
    counted = []
    for batch, rows, cols in ((2, 8, 8), (1, 16, 32), (3, 15, 17), (16, 33, 10)):
        call = PATHS[path].call(torch.float16, layout)
        input = cases.strided_as(torch.randn(batch, call.input.shape[1], rows, cols, device="cuda").half(), layout)
        run(cases.with_epilogue(call._replace(input=input), layout, hardest_slopes(path, layout)), layout, config)
        counted.append(cases.compiled())
    assert len(set(counted)) == 1 and counted[0]
