// What the card's kernels take, and with which tile they take it. Host code alone.
#include <algorithm>

#include "conv_problem.h"

namespace atrous::cuda {

namespace {

// CUTLASS counts bytes of a tensor in 32 bits, with 4 channels bits, and a kernel's position in masks of 32 bits.
constexpr double MOST_BYTES = double(int64_t(1) << 31);
constexpr int64_t MOST_KERNEL = 32;
// Input channels for which a kernel covers several positions at once.
constexpr int64_t FEW = 4;
// A step of the reduction in bytes, and the most shares of it: what more of them save they read again.
constexpr int64_t STEP = 64, MOST_SPLITS = 16;

int64_t bytes(const ConvProblem& problem) { return problem.type == ScalarType::Float ? 4 : 2; }
int64_t vector(const ConvProblem& problem) { return 16 / bytes(problem); }  // channels of one access
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
bool few(const ConvProblem& problem) { return problem.c == FEW; }

// The largest offset that a kernel computes, in elements: into the padding too, but for `few`, which masks that first.
double extent(const ConvProblem& problem) {
  const int64_t around = few(problem) ? 0 : 2;
  return double(problem.n) * double(problem.h + around * problem.padding[0]) *
         double(problem.w + around * problem.padding[1]) * double(problem.c);
}

// What TMA's im2col mode takes: corners of the padded plane in 8 bits, a position of the kernel in 8 bits of which
// CUTLASS leaves one value out, strides of at most 8; addresses and strides are multiples of 16 bytes anyway. Of the 64
// channels of a step at least three quarters must be x's: the rest of them are zeros.
// Source: CUDA driver API, cuTensorMapEncodeIm2col; CUTLASS 4.2, sm90_implicit_gemm_gmma_ss_warpspecialized.hpp.
bool gathers(const ConvProblem& problem) {
  const auto side = [&](int i, int64_t kernel) {
    const int64_t reach = (kernel - 1) * problem.dilation[i], upper = problem.padding[i] - reach;
    return problem.padding[i] <= 128 && upper >= -128 && upper <= 127 && reach <= 254 && problem.stride[i] <= 8;
  };
  const int64_t channels = divide_up(problem.c, 64) * 64;
  return problem.type != ScalarType::Float && side(0, problem.r) && side(1, problem.s) && 3 * channels <= 4 * problem.c;
}

int64_t blocks(const ConvProblem& problem, int64_t m, int64_t n) {
  return divide_up(problem.pixels(), m) * divide_up(problem.k, n);
}

}  // namespace

int64_t conv_channels(int64_t c, ScalarType type) {
  const int64_t vector = type == ScalarType::Float ? 4 : 8;
  return c <= FEW ? FEW : divide_up(c, vector) * vector;
}

std::string conv_reasons(const ConvProblem& problem) {
  std::string all;
  const auto need = [&](bool met, const char* what, const std::string& expected) {
    if (!met) all += std::string(all.empty() ? "" : "; ") + what + ": expected " + expected;
  };
  if (problem.type == ScalarType::Double) return "input: expected float16, bfloat16 or float32, got float64";
  const double input = extent(problem) * bytes(problem), output = double(problem.pixels()) * problem.k * bytes(problem),
               weight = double(problem.k) * double(problem.r * problem.s) * double(problem.c) * bytes(problem);
  need(problem.groups == 1, "groups", "1, got " + std::to_string(problem.groups));
  need(problem.slope != Slope::random && !problem.dropout, "slope and dropout", "nothing drawn");
  need(problem.c == conv_channels(problem.c, problem.type), "input",
       std::to_string(conv_channels(problem.c, problem.type)) + " channels, got " + std::to_string(problem.c));
  need(problem.k % vector(problem) == 0, "weight",
       "a multiple of " + std::to_string(vector(problem)) + " output channels, got " + std::to_string(problem.k));
  need(few(problem) || std::max(problem.r, problem.s) <= MOST_KERNEL, "weight", "a kernel of at most 32 x 32");
  if (few(problem))
    need(input < MOST_BYTES / 8, "input", "less than 256 MiB with 4 channels");
  else
    need(input < MOST_BYTES, "input", "less than 2 GiB, padding included");
  need(output < MOST_BYTES && weight < MOST_BYTES, "output and weight", "less than 2 GiB each");
  for (const void* data : {problem.x, problem.weight, problem.residual, static_cast<const void*>(problem.y)})
    if (reinterpret_cast<uintptr_t>(data) % 16) {
      need(false, "input, weight and residual", "memory that begins at a multiple of 16 bytes");
      break;
    }
  return all;
}

// The largest tile that still gives every multiprocessor one; where none does, the smallest, and the reduction is cut
// until there are two blocks for each. 64 output channels would leave half of the wide tile empty. A card of compute
// capability 9.0 computes the large tiles by its own products, but for what those cannot take.
ConvPlan conv_plan(const ConvProblem& problem, int multiprocessors, bool sm90) {
  if (few(problem)) return {Tile::few, 1, 0};
  const bool tma = sm90 && gathers(problem);
  if (problem.type != ScalarType::Float && problem.k > 64 && blocks(problem, 128, 128) >= multiprocessors)
    return {Tile::t128x128, 1, 0, tma};
  if (blocks(problem, 128, 64) >= multiprocessors) return {Tile::t128x64, 1, 0, tma};
  const int64_t steps = divide_up(problem.c * bytes(problem), STEP);
  const int64_t wanted = 2 * multiprocessors / std::max<int64_t>(blocks(problem, 64, 64), 1);
  const int64_t splits = std::max<int64_t>(std::min({steps, wanted, MOST_SPLITS}), 1);
  const size_t partial = splits > 1 ? size_t(splits) * problem.pixels() * problem.k * sizeof(float) : 0;
  return {Tile::t64x64, int(splits), partial};
}

}  // namespace atrous::cuda
