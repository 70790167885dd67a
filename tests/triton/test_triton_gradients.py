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
from triton_cases import DEVICE, RESIDUALS, on_device, on_gpu

pytest.importorskip("triton")

from triton_pointwise import (  # noqa: E402
    DTYPES,
    LAYOUTS,
    SHAPES,
    SLOPES,
    accumulator,
    arguments,
    changed,
    check_gradients,
    check_statistics,
    check_sums,
    draw,
    means_of,
    programs,
    variants,
)

from atrous.triton_kernels import launch  # noqa: E402
from atrous.triton_kernels.pointwise import backward as gradients  # noqa: E402
from atrous.triton_kernels.pointwise import configs, operands  # noqa: E402
from atrous.triton_kernels.pointwise import reduce as channel_sums  # noqa: E402
from atrous.triton_kernels.pointwise import reduction_plan as reductions  # noqa: E402
from atrous.triton_kernels.pointwise import statistics as channel_statistics  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


test_under_the_interpreter = cases.interpreted(__file__, least=140)


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
            lambda: gradients.epilogue_backward(*call[:2], means, True, True, call[2]),
            lambda: gradients.statistics(call[1]),
        ):
            assert all(torch.equal(a, b) for a, b in zip(run(), run()))


@on_device
@pytest.mark.parametrize("layout", SHAPES)
def test_nothing_outside_the_tensors_is_read_or_written(layout, poison):
    """Inputs at an odd offset, workspace and results are surrounded by NaN, counters by zeros."""
    shape, order = SHAPES[layout]
    call = draw((shape[0] * 8, *shape[1:]), torch.float32, order, dropout=0.3)
    call = changed(poison, call)
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
    grad, z, e = draw((2, 5, 4, 4), torch.float32, "NCHW")
    ones, zeros, absent = torch.ones_like(e.mean), torch.zeros_like(e.mean), {"mean": None, "var": None, "gamma": None}
    for lacking, whole in (
        (e._replace(gamma=None), e._replace(gamma=ones)),
        (e._replace(beta=None), e._replace(beta=zeros)),
        (e._replace(**absent), e._replace(mean=zeros, var=ones - e.eps, gamma=ones)),
    ):
        result = gradients.epilogue_backward(grad, z, None, True, True, lacking)
        expected = gradients.epilogue_backward(grad, z, None, True, True, whole)
        for a, b in zip(result, expected):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@on_device
@pytest.mark.parametrize("shape", [(0, 3, 7, 7), (2, 3, 0, 7), (2, 0, 4, 4), (0, 5)], ids=str)
def test_empty(shape):
    for layout, dtype in itertools.product(LAYOUTS, (torch.float16, torch.float64)):
        z, e = arguments(shape, dtype, layout, "relu", "none")
        call, wide = (torch.empty_like(z), z, e), accumulator(z)
        assert torch.equal(gradients.epilogue_reduce(*call), torch.zeros(3, shape[1], dtype=wide, device=DEVICE))
        for result in gradients.statistics(call[1]):
            assert torch.equal(result, torch.zeros(shape[1], dtype=wide, device=DEVICE))
        means = torch.zeros(2, shape[1], device=DEVICE)
        dz, du = gradients.epilogue_backward(*call[:2], means, True, False, e)
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
            *gradients.epilogue_backward(*call[:2], sums, True, True, call[2]),
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
