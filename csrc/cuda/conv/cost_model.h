// What a tile of the convolution is predicted to take: the rates of each GPU, and the formula of gpus.def.
#pragma once

#include <algorithm>
#include <iterator>
#include <string_view>

#include "problem.h"

namespace atrous::cuda {

constexpr int64_t STEP = 64;  // bytes of the reduction that a block takes at once, of each row of both operands

inline int64_t bytes(ScalarType type) { return type == ScalarType::Float ? 4 : 2; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The chips' constants, and the formula that Cost follows: see the table.
struct Gpu {
  int chip;
  double mma, async, l2, memory;
};
constexpr Gpu GPUS[] = {
#define GPU(chip, mma, async, l2, memory, shared) {chip, mma, async, l2, memory},
#include "../../../triton_kernels/gpus.def"
#undef GPU
};

// That of the chip; of one that the table does not have, the newest that is not newer.
inline const Gpu& gpu(int chip) {
  const auto after =
      std::find_if(std::begin(GPUS) + 1, std::end(GPUS), [&](const Gpu& gpu) { return gpu.chip > chip; });
  return *(after - 1);
}

// Guesses until they are fitted, as in triton_kernels/conv/cost_model.py: clocks of a block's start and of another launch,
// and by how much addresses slow the loads of a thread beside TMA's.
constexpr double START = 2000, LAUNCH = 4000, POINTERS = 1.25;

// What a tile of m pixels x n channels takes, in clocks of a multiprocessor.
struct Cost {
  std::string_view name;
  Tile tile;
  bool tma;
  int64_t m, n, smem_rows_read;  // rows of both operands that the warps read in a step
  int64_t blocks_per_sm;
  int cluster_size;  // blocks that read the weight from L2 once for all of them

  double step(const Gpu& gpu) const {
    const double products = m * n * STEP / 2 / (tma ? gpu.async : gpu.mma);
    const double shared = (m + n + smem_rows_read) * STEP / 128.0;
    const double loads = (m + double(n) / cluster_size) * STEP * (tma ? 1 : POINTERS) / gpu.l2;
    return std::max({products, loads, shared});
  }
  // Steps of one position of the kernel; wgmma's main loop takes two at once.
  int64_t steps(const ConvProblem& problem) const {
    const int64_t together = tma ? 2 : 1;
    return together * divide_up(problem.c * bytes(problem.type), together * STEP);
  }
  // Clocks of the busiest multiprocessor, and of the second launch that sums the splits.
  double clocks(const ConvProblem& problem, int64_t splits, const Gpu& gpu, int multiprocessors) const {
    const int64_t tiles = divide_up(problem.pixels(), m) * divide_up(problem.k, n) * splits;
    const int64_t turns = divide_up(tiles, multiprocessors), blocks = std::min(turns, blocks_per_sm);
    const double sum = sizeof(float) / gpu.l2, output = bytes(problem.type) * (problem.residual ? 2 : 1) / gpu.memory;
    const double main = problem.r * problem.s * divide_up(steps(problem), splits) * step(gpu);
    const double ending = m * n * (splits > 1 ? sum : output);
    const double tile = (blocks > 1 ? std::max(main, ending) : main + ending) + START / blocks;
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
