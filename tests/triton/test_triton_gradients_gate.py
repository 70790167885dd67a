"""Compiles the kernels for training for sm_80, sm_90 and sm_100 without a GPU, as test_triton_gate.py does the forward.

`make test` compiles the preferred configs for one chip; `make gates` each config for a drawn chip, and `make gates-all`
for every chip.
"""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")

import compile_gate as gate  # noqa: E402
import triton.language as tl  # noqa: E402
from conv_gate import ASYNC  # noqa: E402
from test_triton_gate import CHIPS, CONFIGS, PREFERRED, SHAPES, VECTORS, complaints  # noqa: E402

from atrous.core.spec import Epilogue  # noqa: E402
from atrous.triton_kernels import launch  # noqa: E402
from atrous.triton_kernels.pointwise import backward as gradients  # noqa: E402
from atrous.triton_kernels.pointwise import operands  # noqa: E402
from atrous.triton_kernels.pointwise import reduce as channel_sums  # noqa: E402
from atrous.triton_kernels.pointwise import reduction_plan as reductions  # noqa: E402
from atrous.triton_kernels.pointwise import statistics as channel_statistics  # noqa: E402

KERNELS = {
    "statistics": (channel_statistics, "statistics_kernel"),
    "reduce": (channel_sums, "reduce_kernel"),
    "backward": (gradients, "backward_kernel"),
}


def call(name, z, slope_kind, residual, norm, batch, dropout, vectors):
    """Launches the kernel of this name; a residual comes before the activation and its gradient is needed."""
    if name == "statistics":
        return gradients.statistics(z)
    vector = torch.ones(z.shape[1], dtype=vectors)
    seed, added = torch.zeros(2, dtype=torch.int64), torch.zeros_like(z) if residual else None
    bn = [vector if norm else None] * 4
    e = Epilogue(*bn, vector, added, slope_kind, 1e-5, 0.1, 0.3, seed=seed, dropout=dropout)
    if name == "reduce":
        return gradients.epilogue_reduce(torch.zeros_like(z), z, e)
    means = torch.zeros(3, z.shape[1], dtype=operands.accumulator(z)) if batch else None
    return gradients.epilogue_backward(torch.zeros_like(z), z, means, True, residual, e)


def variant(
    name, layout, config, dtype, slope_kind="tensor", residual=True, dropout=0.3,
    norm=True, batch=True, vectors=torch.float32, even=True,
):  # fmt: skip
    """The variant that the launcher of this name launches for such a tensor in this config."""
    z = torch.zeros(SHAPES[layout][not even], dtype=dtype)
    if layout == "nhwc":
        z = z.contiguous(memory_format=torch.channels_last)
    module, kernel = KERNELS[name]
    recorder = gate.Recorder(getattr(module, kernel))
    chosen = mock.Mock(return_value=config)
    with (
        mock.patch.object(module, kernel, recorder),
        mock.patch.object(operands, "pointwise_config", chosen),
        mock.patch.object(reductions, "pointwise_config", chosen),
    ):
        call(name, z, slope_kind, residual, norm, batch, dropout, vectors)
    assert recorder.arguments["LAYOUT"] == layout
    wide = [
        n for n in ("grad_ptr", "z_ptr", "residual_ptr", "dz_ptr", "du_ptr") if recorder.arguments.get(n) is not None
    ]
    pipelined = even and name != "backward" and dtype != torch.float64
    per_thread = config.block_rows * config.block_cols // (32 * config.num_warps)
    # at least two elements of a thread share a channel's value, and some are read for two purposes
    most = {n: per_thread for n in VECTORS if recorder.arguments.get(n) is not None}
    label = f"{name} {layout} {tuple(config)} {dtype} {slope_kind} {'residual' if residual else ''} dropout {dropout}"
    return gate.capture(
        recorder,
        module.__name__,
        label=label,
        wide=tuple(wide) if even else (),
        most=most if even else {},
        loop_patterns=(ASYNC,) if pipelined else (),
    )


def test_every_kernel():
    """On sm_90, the preferred config of each layout with the most live values of a gradient."""
    choices = [(torch.bfloat16, "random"), (torch.float32, "tensor")]
    jobs = [(variant(name, *c, *choice), 90) for name in KERNELS for c in PREFERRED for choice in choices]
    assert complaints(jobs) == []


def test_rare_variants():
    """No or constant BatchNorm; fp64 vectors; 64-bit offsets; rows that are not whole 16-byte accesses."""
    jobs = []
    for name, (layout, config) in itertools.product(("reduce", "backward"), PREFERRED):
        for change in ({"norm": False}, {"batch": False}, {"vectors": torch.float64}, {"even": False}):
            jobs.append((variant(name, layout, config, torch.bfloat16, **change), 90))
    for name, (layout, config) in itertools.product(KERNELS, PREFERRED):
        with mock.patch.object(launch, "INT32_ELEMENTS", 0):
            jobs.append((variant(name, layout, config, torch.bfloat16, "random"), 90))
        assert jobs[-1][0].constants["OFFSET"] == tl.int64
    assert complaints(jobs) == []


@pytest.mark.gate
@pytest.mark.drawn(3)
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("layout, config", CONFIGS, ids=str)
def test_everything(chip, layout, config):
    """Each dtype with a residual, dropout, and loaded or random slopes: the most live values. sm_90 also compiles the
    other kind of slopes and what needs less."""
    turns = list(zip(operands.DTYPES, ("tensor", "random", "random", "tensor")))
    product = [(dtype, kind, True, 0.3) for dtype, kind in turns]
    if chip == 90:
        product += [(dtype, {"tensor": "random", "random": "tensor"}[kind], True, 0.3) for dtype, kind in turns]
        product += [(dtype, kind, kind == "relu", 0.0) for dtype, kind in zip(operands.DTYPES, ("relu", "number") * 2)]
    variants = [variant(name, layout, config, *choice) for name in ("reduce", "backward") for choice in product]
    variants += [variant("statistics", layout, config, dtype) for dtype in operands.DTYPES]
    assert complaints([(one, chip) for one in variants]) == []


def test_a_reduction_that_spills_is_refused():
    layout, config = PREFERRED[0]
    fat = config._replace(block_rows=4 * config.block_rows)
    (line,) = complaints([(variant("reduce", layout, fat, torch.bfloat16), 90)])
    assert "expected no spills" in line
