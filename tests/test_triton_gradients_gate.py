"""The kernels of training, compiled for sm_80, sm_90 and sm_100 without a card, as test_triton_gate.py does forwards.

`make test` compiles what a call prefers for one chip; marker `gate` compiles every config.
"""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")

import compile_gate as gate  # noqa: E402
import triton.language as tl  # noqa: E402
from test_triton_gate import CHIPS, CONFIGS, DTYPES, PREFERRED, SHAPES, SLOPE_KINDS, VECTORS, complaints  # noqa: E402

from atrous.triton_kernels import channel_statistics, channel_sums, gradients, launch, pointwise  # noqa: E402
from atrous.triton_kernels import pointwise_configs as configs  # noqa: E402
from atrous.triton_kernels import reduction_plan as reductions  # noqa: E402

KERNELS = {
    "statistics": (channel_statistics, "statistics_kernel"),
    "reduce": (channel_sums, "reduce_kernel"),
    "backward": (gradients, "backward_kernel"),
}


def call(name, z, slope_kind, residual, norm, batch, dropout, vectors):
    if name == "statistics":
        return gradients.statistics(z)
    vector = torch.ones(z.shape[1], dtype=vectors)
    seed, added = torch.zeros(2, dtype=torch.int64), torch.zeros_like(z) if residual else None
    ending = ([vector if norm else None] * 4, 1e-5, slope_kind, 0.1, 0.3, vector, seed, added, False, dropout)
    arguments = (*ending[0], *ending[1:])
    if name == "reduce":
        return gradients.epilogue_reduce(torch.zeros_like(z), z, *arguments)
    means = torch.zeros(3, z.shape[1], dtype=pointwise.accumulator(z)) if batch else None
    return gradients.epilogue_backward(torch.zeros_like(z), z, means, True, residual, *arguments)


def variant(
    name, layout, config, dtype, slope_kind="tensor", residual=True, dropout=0.3,
    norm=True, batch=True, vectors=torch.float32, even=True,
):  # fmt: skip
    """What the launcher of this name launches for such a tensor when it takes this config."""
    z = torch.zeros(SHAPES[layout][not even], dtype=dtype)
    if layout == "last":
        z = z.contiguous(memory_format=torch.channels_last)
    module, kernel = KERNELS[name]
    recorder = gate.Recorder(getattr(module, kernel))
    taken = mock.Mock(return_value=config)
    with (
        mock.patch.object(module, kernel, recorder),
        mock.patch.object(pointwise, "pointwise_config", taken),
        mock.patch.object(reductions, "pointwise_config", taken),
    ):
        call(name, z, slope_kind, residual, norm, batch, dropout, vectors)
    assert recorder.arguments["LAYOUT"] == layout
    wide = [n for n in ("grad_ptr", "z_ptr", "residual_ptr", "dz_ptr", "du_ptr") if recorder.arguments.get(n) is not None]
    per_thread = config.block_rows * config.block_cols // (32 * config.num_warps)
    # a channel's value is shared by at least two of a thread's elements; a variance is read for a factor too
    most = {n: per_thread for n in VECTORS if recorder.arguments.get(n) is not None}
    label = f"{name} {layout} {tuple(config)} {dtype} {slope_kind} {'residual' if residual else ''} dropout {dropout}"
    return gate.capture(
        recorder, module.__name__, label=label, wide=tuple(wide) if even else (), most=most if even else {}
    )
