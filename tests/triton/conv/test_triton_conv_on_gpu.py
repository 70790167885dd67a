"""The fused Triton convolution on a GPU: large tensors, CUDA graphs, streams, devices and recompilation."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
import triton_cases as cases
from triton_cases import (
    DTYPES,
    LAYOUTS,
    NAN,
    PATHS,
    PATHS_AND_LAYOUTS,
    on_gpu,
)

pytest.importorskip("triton")

from triton_conv import check, hardest_slopes, run  # noqa: E402

from atrous.triton_kernels.conv import configs  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


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
