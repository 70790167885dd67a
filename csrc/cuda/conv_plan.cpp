// What the card's kernels take, and with which tile they take it.
#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "conv_problem.h"

namespace atrous::cuda {

namespace {

// CUTLASS counts bytes of a tensor in 32 bits, and a kernel's position in masks of 32 bits.
constexpr double MOST_BYTES = double(int64_t(1) << 31);
constexpr int64_t MOST_KERNEL = 32;
// A step of the reduction in bytes, and the most shares of it: what more of them save they read again.
constexpr int64_t STEP = 64, MOST_SPLITS = 16;

int64_t bytes(ScalarType type) { return type == ScalarType::Float ? 4 : 2; }
int64_t vector(ScalarType type) { return 16 / bytes(type); }  // channels of one access
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The largest offset that a kernel computes, into the padding too, in elements.
double extent(const ConvProblem& problem) {
  return double(problem.n) * double(problem.h + 2 * problem.padding[0]) *
         double(problem.x_strides[1] + 2 * problem.padding[1] * problem.c);
}

// Shares of a position's steps, when no share may be empty.
int64_t shares(int64_t steps, int64_t wanted) { return divide_up(steps, divide_up(steps, wanted)); }

// What TMA's im2col mode takes: corners of the padded plane in 8 bits, a position of the kernel in 8 bits of which
// CUTLASS leaves one value out, strides of at most 8; addresses and strides are multiples of 16 bytes anyway.
// Source: CUDA driver API, cuTensorMapEncodeIm2col; CUTLASS 4.2, sm90_implicit_gemm_gmma_ss_warpspecialized.hpp.
bool gathers(const ConvProblem& problem) {
  const auto side = [&](int i, int64_t kernel) {
    const int64_t reach = (kernel - 1) * problem.dilation[i], upper = problem.padding[i] - reach;
    return problem.padding[i] <= 128 && upper >= -128 && upper <= 127 && reach <= 254 && problem.stride[i] <= 8;
  };
  return problem.type != ScalarType::Float && side(0, problem.r) && side(1, problem.s);
}

// The chips' constants, and the formula that Cost follows: see the table.
struct Gpu {
  int chip;
  double mma, async, l2, memory;
  int shared;
};
constexpr Gpu GPUS[] = {
#define GPU(...) {__VA_ARGS__},
#include "../../triton_kernels/gpus.def"
#undef GPU
};

// That of the chip; of one that the table does not have, the newest that is not newer.
const Gpu& gpu(int chip) {
  const auto after =
      std::find_if(std::begin(GPUS) + 1, std::end(GPUS), [&](const Gpu& gpu) { return gpu.chip > chip; });
  return *(after - 1);
}

// Guesses until they are fitted, as in triton_kernels/cost_model.py: clocks of a block's start and of another launch,
// and by how much addresses slow the loads of a thread beside TMA's.
constexpr double START = 2000, LAUNCH = 4000, POINTERS = 1.25;

// What a tile of m pixels x n channels takes, in clocks of a multiprocessor.
struct Cost {
  std::string_view name;
  Tile tile;
  bool tma;
  int64_t m, n, reads;  // reads: rows of a step that its warps read of both operands in shared memory
  int64_t blocks;       // that a multiprocessor has room for
  int sharers;          // blocks that read the weight from L2 once for all of them

  double step(const Gpu& gpu) const {
    const double products = m * n * STEP / 2 / (tma ? gpu.async : gpu.mma), shared = (m + n + reads) * STEP / 128.0;
    const double loads = (m + double(n) / sharers) * STEP * (tma ? 1 : POINTERS) / gpu.l2;
    return std::max({products, loads, shared});
  }
  // Of a position: TMA's products take two at once.
  int64_t steps(const ConvProblem& problem) const {
    const int64_t together = tma ? 2 : 1;
    return together * divide_up(problem.c * bytes(problem.type), together * STEP);
  }
  // Of the launch: those of the busiest multiprocessor, and of the second launch that sums splits.
  double clocks(const ConvProblem& problem, int64_t splits, const Gpu& gpu, int multiprocessors) const {
    const int64_t tiles = divide_up(problem.pixels(), m) * divide_up(problem.k, n) * splits;
    const int64_t turns = divide_up(tiles, multiprocessors), resident = std::min(turns, blocks);
    const double sum = sizeof(float) / gpu.l2, output = bytes(problem.type) * (problem.residual ? 2 : 1) / gpu.memory;
    const double main = problem.r * problem.s * divide_up(steps(problem), splits) * step(gpu);
    const double ending = m * n * (splits > 1 ? sum : output);
    const double tile = (resident > 1 ? std::max(main, ending) : main + ending) + START / resident;
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
// What no GPU has run yet is taken where it is named, and nowhere else.
constexpr std::string_view UNMEASURED = "wgmma-256x128";

}  // namespace

int64_t conv_channels(int64_t c, ScalarType type, int64_t dilation_w) {
  if (reads_rows(c, dilation_w)) return FEW;
  return divide_up(c, vector(type)) * vector(type);
}

void merge_rows(ConvProblem& problem) {
  problem.x_strides[0] = problem.stride[1] * problem.c;
  problem.w = problem.q;
  problem.c *= problem.s;
  problem.s = problem.stride[1] = 1;
}

std::string conv_reasons(const ConvProblem& problem) {
  std::string all;
  const auto need = [&](bool met, const char* what, const std::string& expected) {
    if (!met) all += std::string(all.empty() ? "" : "; ") + what + ": expected " + expected;
  };
  if (problem.type == ScalarType::Double) return "input: expected float16, bfloat16 or float32, got float64";
  const double input = extent(problem) * bytes(problem.type),
               output = double(problem.pixels()) * problem.k * bytes(problem.type),
               weight = double(problem.k) * double(problem.r * problem.s) * double(problem.c) * bytes(problem.type);
  need(problem.groups == 1, "groups", "1, got " + std::to_string(problem.groups));
  need(problem.slope != Slope::random && !problem.dropout, "slope and dropout", "nothing drawn");
  need(problem.k % vector(problem.type) == 0, "weight",
       "a multiple of " + std::to_string(vector(problem.type)) + " output channels, got " + std::to_string(problem.k));
  need(std::max(problem.r, problem.s) <= MOST_KERNEL, "weight", "a kernel of at most 32 x 32");
  need(input < MOST_BYTES, "input", "less than 2 GiB, padding included");
  need(output < MOST_BYTES && weight < MOST_BYTES, "output and weight", "less than 2 GiB each");
  for (const void* data : {problem.x, problem.weight, problem.residual})
    if (reinterpret_cast<uintptr_t>(data) % 16) {
      need(false, "input, weight and residual", "memory that begins at a multiple of 16 bytes");
      break;
    }
  return all;
}

std::string conv_tiles() {
  std::string all;
  for (const Cost& cost : COSTS) all += std::string(all.empty() ? "" : ", ") + std::string(cost.name);
  return all;
}

bool is_conv_tile(std::string_view name) {
  return std::any_of(std::begin(COSTS), std::end(COSTS), [&](const Cost& cost) { return cost.name == name; });
}

ConvPlan conv_plan(const ConvProblem& problem, const Target& target) {
  if (problem.c % vector(problem.type) || problem.x_strides[0] % vector(problem.type)) return {Tile::few, 1, 0};
  const bool tma = target.wgmma && gathers(problem), wide = problem.type != ScalarType::Float;
  ConvPlan best{};
  std::pair least(true, std::numeric_limits<double>::infinity());  // another tile than the one named, clocks
  for (const Cost& cost : COSTS) {
    const bool other = cost.name != target.tile;
    const int64_t steps = cost.steps(problem), most = cost.tma ? 1 : std::min(steps, MOST_SPLITS);
    if ((cost.tma && !tma) || (cost.n == 128 && !wide) || (other && cost.name == UNMEASURED)) continue;
    for (int64_t splits = 1; splits <= most; ++splits) {
      const std::pair now(other, cost.clocks(problem, splits, gpu(target.chip), target.multiprocessors));
      if (shares(steps, splits) != splits || now >= least) continue;
      const size_t partial = splits > 1 ? size_t(splits) * problem.pixels() * problem.k * sizeof(float) : 0;
      least = now, best = {cost.tile, int(splits), partial, cost.tma, target.multiprocessors};
    }
  }
  return best;
}

}  // namespace atrous::cuda
