"""Tests that the cost models in C++ and Python, conv/cost_model.h and conv/cost_model.py, predict equal clocks."""

import math
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from atrous.triton_kernels.conv.cost_model import Rates, Work, clocks
from atrous.triton_kernels.gpus import GPUS

ROOT = Path(__file__).parents[2]
LAYERS = [(256, 14, 256, 256), (32, 28, 128, 128), (8, 56, 64, 64)]  # n, size, c, k of a 3x3 convolution in fp16
PROGRAM = r"""
#include <cstdio>
#include "../../csrc/cuda/conv/cost_model.h"
using namespace atrous;
using namespace atrous::cuda;
int main() {
  const int64_t layers[][4] = {%s};
  for (const Gpu& gpu : GPUS)
    for (const Cost& cost : COSTS)
      for (const auto& layer : layers) {
        ConvProblem p{};
        p.type = ScalarType::Half, p.n = layer[0], p.p = p.q = layer[1], p.c = layer[2], p.k = layer[3], p.r = p.s = 3;
        const double plain = cost.clocks(p, 1, gpu, 132);
        p.residual = &p;
        std::printf("%%d %%d %%d %%d %%d %%d %%d %%.17g %%.17g\n", gpu.chip, int(cost.m), int(cost.n),
                    int(cost.smem_rows_read), int(cost.blocks_per_sm), cost.cluster_size, cost.tma,
                    plain, cost.clocks(p, 1, gpu, 132));
      }
}
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """A line per GPU, tile and layer: chip, m, n, the fields of Cost, clocks without and with a residual."""
    folder = tmp_path_factory.mktemp("costs")
    (folder / "costs.cpp").write_text(PROGRAM % ", ".join(f"{{{', '.join(map(str, layer))}}}" for layer in LAYERS))
    folders = [f"-I{path}" for path in (ROOT / "tests/csrc", ROOT / "tests/support/host_cuda", *include_paths())]
    flags = ["-std=c++17", "-DTORCH_TARGET_VERSION=0x020b000000000000", *folders]
    subprocess.run(["g++", *flags, folder / "costs.cpp", "-o", folder / "costs"], check=True)
    out = subprocess.run(folder / "costs", check=True, capture_output=True, text=True).stdout
    return [list(map(float, line.split())) for line in out.splitlines()]


def test_every_tile_costs_the_same(printed):
    assert len(printed) == len(GPUS) * 6 * len(LAYERS)
    for at, (chip, m, n, rows_read, blocks_per_sm, cluster_size, tma, plain, residual) in enumerate(printed):
        if cluster_size > 1:  # Triton has no clusters
            continue
        images, size, c, k = LAYERS[at % len(LAYERS)]
        gpu = GPUS[int(chip)]
        steps = 9 * c * 2 // 64  # a step reads 64 bytes of depth
        turns = -(-math.ceil(images * size * size / m) * math.ceil(k / n) // 132)
        rates = Rates(gpu.asynchronous if tma else gpu.mma, gpu.l2, gpu.memory)
        work = Work(int(m), int(n), 64, 2, steps, 1, rows_read, turns, min(turns, int(blocks_per_sm)), not tma)
        # Python has a residual at every second layer.
        expected = clocks(work, rates)
        assert min(plain, residual) <= expected <= max(plain, residual)
        if work.resident == 1:
            assert expected == pytest.approx((plain + residual) / 2)
