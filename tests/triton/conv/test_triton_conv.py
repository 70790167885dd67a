"""The fused Triton convolution against the fp64 oracle, on a GPU or on the CPU under Triton's interpreter.

The polyphase identity is a second oracle, without dilation. triton_cases.py has the calls, triton_conv.py their check.
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
    PATHS,
    PATHS_AND_LAYOUTS,
    POINTERS,
    on_device,
)

pytest.importorskip("triton")

from triton_conv import check, hardest_slopes, run  # noqa: E402

from atrous.triton_kernels import launch  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


test_under_the_interpreter = cases.interpreted(__file__, least=250)


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
def test_splits_of_steps_that_hold_several_taps():
    for dtype, layout in itertools.product(DTYPES, LAYOUTS):
        call = cases.convolution((2, 7, 5, 9), 9, (5, 9), dtype, layout, padding=(2, 4))
        check(cases.with_epilogue(call, layout), layout, POINTERS._replace(splits=2))


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
    input, weight, bias, (stride, (top, left), (down, right), groups), _ = call.double()
    padded = F.pad(input, (left, left, top, top))
    rows, cols = (padded.shape[2 + i] - (down, right)[i] * (weight.shape[2 + i] - 1) for i in (0, 1))
    z = padded.new_zeros(len(input), len(weight), rows, cols)
    for i, j in itertools.product(range(min(down, rows)), range(min(right, cols))):
        z[..., i::down, j::right] = F.conv2d(padded[..., i::down, j::right], weight, bias, groups=groups)
    return z[..., :: stride[0], :: stride[1]]


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
        dense = run(call.changed(input=grid, padding=(0, 0), dilation=(1, 1)), layout, PATHS[path].config)
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
