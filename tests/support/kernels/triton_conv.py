"""A call of the fused Triton convolution, and its check against the oracle. It imports triton."""

from __future__ import annotations

import triton_cases as cases
from triton_cases import LAYOUTS, PATHS

from atrous.triton_kernels.conv import forward as conv


def run(call, layout="NCHW", config=None):
    return conv.conv_epilogue(*call, memory_format=LAYOUTS[layout], config=config)


def check(call, layout="NCHW", config=None, truth=None):
    """Returns y after checking its error against the oracle, its strides, and that nothing was mutated."""
    with cases.unmutated(call):
        y = run(call, layout, config)
    assert y.stride() == cases.strides(y.shape, layout)
    cases.assert_within(y, call, truth)
    return y


def hardest_slopes(path, layout):
    """Random slopes if the path supports them, else a tensor."""
    return "random" if cases.config_runs(PATHS[path].config, layout, draws=True) else "tensor"
