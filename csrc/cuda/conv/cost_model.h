// The cost model of the convolution's tiles: each GPU's rates, and the formula of gpus.def.
#pragma once

#include <algorithm>
#include <iterator>
#include <string_view>

#include "problem.h"

namespace atrous::cuda {

constexpr int64_t STEP = 64;  // bytes per row of either operand in one step of the main loop

inline int64_t bytes(ScalarType type) { return type == ScalarType::Float ? 4 : 2; }

// The rates of a GPU; gpus.def documents them and the formula of Cost.
struct Gpu {
  int chip;
  double mma, async, l2, memory;
};
constexpr Gpu GPUS[] = {
#define GPU(chip, mma, async, l2, memory, shared) {chip, mma, async, l2, memory},
#include "../../../triton_kernels/gpus.def"
#undef GPU
};

// The rates of this chip or, if the table lacks it, of the newest older one.
inline const Gpu& gpu(int chip) {
  const auto after =
      std::find_if(std::begin(GPUS) + 1, std::end(GPUS), [&](const Gpu& gpu) { return gpu.chip > chip; });
  return *(after - 1);
}

// Estimates until they are fitted, as in triton_kernels/conv/cost_model.py: the clocks of a block's start and of
// another launch, and the slowdown of a thread's loads by their address arithmetic, compared with TMA.
constexpr double START = 2000, LAUNCH = 4000, POINTERS = 1.25;

// The cost of a tile of m pixels x n channels, in clocks of a multiprocessor.
struct Cost {
  std::string_view name;
  Tile tile;
  bool tma;
  int64_t m, n, smem_rows_read;  // rows of both operands that the warps read in a step
  int64_t blocks_per_sm;
  int cluster_size;  // blocks that share one read of the weight from L2

  double step(const Gpu& gpu) const {
    const double mma = m * n * STEP / 2 / (tma ? gpu.async : gpu.mma);
    const double shared = (m + n + smem_rows_read) * STEP / 128.0;
    const double loads = (m + double(n) / cluster_size) * STEP * (tma ? 1 : POINTERS) / gpu.l2;
    return std::max({mma, loads, shared});
  }
  // Steps per kernel position; wgmma's main loop takes two at a time.
  int64_t steps(const ConvProblem& problem) const {
    const int64_t together = tma ? 2 : 1;
    return together * ceil_div(problem.c * bytes(problem.type), together * STEP);
  }
  // Clocks of the busiest multiprocessor, plus those of the launch that reduces the splits.
  double clocks(const ConvProblem& problem, int64_t splits, const Gpu& gpu, int multiprocessors) const {
    const int64_t tiles = ceil_div(problem.pixels(), m) * ceil_div(problem.k, n) * splits;
    const int64_t turns = ceil_div(tiles, multiprocessors), blocks = std::min(turns, blocks_per_sm);
    const double sum = sizeof(float) / gpu.l2, output = bytes(problem.type) * (problem.residual ? 2 : 1) / gpu.memory;
    const double main = problem.r * problem.s * ceil_div(steps(problem), splits) * step(gpu);
    const double epilogue = m * n * (splits > 1 ? sum : output);
    const double tile = (blocks > 1 ? std::max(main, epilogue) : main + epilogue) + START / blocks;
    const double reduce = LAUNCH + problem.pixels() * problem.k * (splits * sum + output) / multiprocessors;
    return turns * tile + (splits > 1 ? reduce : 0);
  }
};

constexpr Cost COSTS[] = {{"wgmma-256x128", Tile::t256x128, true, 256, 128, 512, 1, 2},
                          {"wgmma-128x128", Tile::t128x128, true, 128, 128, 384, 1, 1},
                          {"wgmma-128x64", Tile::t128x64, true, 128, 64, 256, 2, 1},
                          {"mma-128x128", Tile::t128x128, false, 128, 128, 512, 2, 1},
                          {"mma-128x64", Tile::t128x64, false, 128, 64, 384, 3, 1},
                          {"mma-64x64", Tile::t64x64, false, 64, 64, 256, 4, 1}};

}  // namespace atrous::cuda
