// What the card's kernels take, and with which tile they take it.
#include <algorithm>
#include <limits>

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

// What a tile of m pixels x n channels takes: a prediction, not measured yet. Its rates are of an H100, in clocks of a
// multiprocessor.
struct Cost {
  Tile tile;
  bool tma;
  int64_t m, n, reads;  // reads: rows of a step that its warps read of both operands in shared memory
  double products;      // a clock

  double step() const { return std::max(m * n * 32 / products, (m + n + reads) * STEP / 128.0); }
  // Of a position: TMA's products take two at once.
  int64_t steps(const ConvProblem& problem) const {
    const int64_t together = tma ? 2 : 1;
    return together * divide_up(problem.c * bytes(problem.type), together * STEP);
  }
  double clocks(const ConvProblem& problem, int64_t splits, int multiprocessors) const {
    const int64_t blocks = divide_up(problem.pixels(), m) * divide_up(problem.k, n) * splits;
    const double start = 2000, launch = 4000, bytes_a_clock = 20.0 * multiprocessors;
    const double product = problem.r * problem.s * divide_up(steps(problem), splits) * step() + start;
    const double sums = launch + 2.0 * splits * problem.pixels() * problem.k * sizeof(float) / bytes_a_clock;
    return divide_up(blocks, multiprocessors) * product + (splits > 1 ? sums : 0);
  }
};

constexpr double MMA = 1300, WGMMA = 1740;
constexpr Cost COSTS[] = {{Tile::t128x128, true, 128, 128, 384, WGMMA},
                          {Tile::t128x64, true, 128, 64, 256, WGMMA},
                          {Tile::t128x128, false, 128, 128, 512, MMA},
                          {Tile::t128x64, false, 128, 64, 384, MMA},
                          {Tile::t64x64, false, 64, 64, 256, MMA}};

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

ConvPlan conv_plan(const ConvProblem& problem, int multiprocessors, bool sm90) {
  if (problem.c % vector(problem.type) || problem.x_strides[0] % vector(problem.type)) return {Tile::few, 1, 0};
  const bool tma = sm90 && gathers(problem), wide = problem.type != ScalarType::Float;
  ConvPlan best{};
  double least = std::numeric_limits<double>::infinity();
  for (const Cost& cost : COSTS) {
    const int64_t steps = cost.steps(problem), most = cost.tma ? 1 : std::min(steps, MOST_SPLITS);
    if ((cost.tma && !tma) || (cost.n == 128 && !wide)) continue;
    for (int64_t splits = 1; splits <= most; ++splits) {
      const double clocks = cost.clocks(problem, splits, multiprocessors);
      if (shares(steps, splits) != splits || clocks >= least) continue;
      const size_t partial = splits > 1 ? size_t(splits) * problem.pixels() * problem.k * sizeof(float) : 0;
      least = clocks, best = {cost.tile, int(splits), partial, cost.tma};
    }
  }
  return best;
}

}  // namespace atrous::cuda
