// What the card's kernels take, and with which tile they take it. Host code alone.
#include <algorithm>

#include "conv_problem.h"

namespace atrous::cuda {

namespace {

// CUTLASS counts bytes of a tensor in 32 bits, and a kernel's position in masks of 32 bits.
constexpr double MOST_BYTES = double(int64_t(1) << 31);
constexpr int64_t MOST_KERNEL = 32;
// A step of the reduction in bytes, and the most shares of it: what more of them save they read again.
constexpr int64_t STEP = 64, MOST_SPLITS = 16;

int64_t bytes(const ConvProblem& problem) { return problem.type == Type::fp32 ? 4 : 2; }
int64_t vector(const ConvProblem& problem) { return 16 / bytes(problem); }  // channels of one access
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
bool any_channels(const ConvProblem& problem) { return problem.c % vector(problem); }

// The largest offset that a kernel computes, in elements: into the padding too, but for `any`, which masks that first.
double extent(const ConvProblem& problem) {
  const int64_t around = any_channels(problem) ? 0 : 2;
  return double(problem.n) * double(problem.h + around * problem.padding[0]) *
         double(problem.w + around * problem.padding[1]) * double(problem.c);
}

int64_t blocks(const ConvProblem& problem, int64_t m, int64_t n) {
  return divide_up(problem.pixels(), m) * divide_up(problem.k, n);
}

}  // namespace

std::string conv_reasons(const ConvProblem& problem) {
  std::string all;
  const auto need = [&](bool met, const char* what, const std::string& expected) {
    if (!met) all += std::string(all.empty() ? "" : "; ") + what + ": expected " + expected;
  };
  if (problem.type == Type::fp64) return "input: expected float16, bfloat16 or float32, got float64";
  const bool any = any_channels(problem);
  need(problem.groups == 1, "groups", "1, got " + std::to_string(problem.groups));
  need(problem.slope != Slope::random && !problem.dropout, "slope and dropout", "nothing drawn");
  need(problem.k % vector(problem) == 0, "weight",
       "a multiple of " + std::to_string(vector(problem)) + " output channels, got " + std::to_string(problem.k));
  need(any || std::max(problem.r, problem.s) <= MOST_KERNEL, "weight", "a kernel of at most 32 x 32");
  need(extent(problem) * double(bytes(problem)) < MOST_BYTES / (any ? 8 : 1), "input",
       any ? "less than 256 MiB where its channels are no such multiple" : "less than 2 GiB, padding included");
  need(double(problem.pixels()) * double(problem.k) * double(bytes(problem)) < MOST_BYTES, "output", "less than 2 GiB");
  need(double(problem.k) * double(problem.r * problem.s) * double(problem.c * bytes(problem)) < MOST_BYTES, "weight",
       "less than 2 GiB");
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  need(aligned(problem.y) && aligned(problem.residual) && (any || (aligned(problem.x) && aligned(problem.weight))),
       "input, weight and residual", "memory that begins at a multiple of 16 bytes");
  return all;
}

// The largest tile that still gives every multiprocessor one; where none does, the smallest, and the reduction is cut
// until there are two blocks for each. 64 output channels would leave half of the wide tile empty.
ConvPlan conv_plan(const ConvProblem& problem, int multiprocessors) {
  if (any_channels(problem)) return {Tile::any, 1, 0};
  if (problem.type != Type::fp32 && problem.k > 64 && blocks(problem, 128, 128) >= multiprocessors)
    return {Tile::t128x128, 1, 0};
  if (blocks(problem, 128, 64) >= multiprocessors) return {Tile::t128x64, 1, 0};
  const int64_t steps = divide_up(problem.c * bytes(problem), STEP);
  const int64_t wanted = 2 * multiprocessors / std::max<int64_t>(blocks(problem, 64, 64), 1);
  const int64_t splits = std::max<int64_t>(std::min({steps, wanted, MOST_SPLITS}), 1);
  const size_t partial = splits > 1 ? size_t(splits) * problem.pixels() * problem.k * sizeof(float) : 0;
  return {Tile::t64x64, int(splits), partial};
}

cudaError_t conv_run(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  if (problem.pixels() == 0 || problem.k == 0) return cudaSuccess;
  const auto product = problem.type == Type::fp16 ? conv_fp16 : problem.type == Type::bf16 ? conv_bf16 : conv_fp32;
  const cudaError_t result = product(problem, plan, workspace, stream);
  if (result != cudaSuccess || plan.splits == 1) return result;
  return conv_reduce(problem, plan.splits, static_cast<const float*>(workspace), stream);
}

}  // namespace atrous::cuda
