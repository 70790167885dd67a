// Heuristics of the CUDA convolution: which problems the kernels support, and which tile and split-K they use.
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "cost_model.h"

namespace atrous::cuda {

namespace {

// CUTLASS addresses a tensor's bytes with 32 bits and keeps kernel positions in 32-bit masks.
constexpr double MAX_BYTES = double(int64_t(1) << 31);
constexpr int64_t MAX_KERNEL = 32;
// More splits save no more time than their partial sums cost to read.
constexpr int64_t MAX_SPLITS = 16;

int64_t vector(ScalarType type) { return 16 / bytes(type); }  // channels of one 16-byte access

// The largest offset that a kernel computes, padding included, in elements.
double extent(const ConvProblem& problem) {
  return double(problem.n) * double(problem.h + 2 * problem.padding[0]) *
         double(problem.x_strides[1] + 2 * problem.padding[1] * problem.c);
}

// The number of splits that are not empty, if each but the last has as many steps as the first.
int64_t filled_splits(int64_t steps, int64_t splits) { return ceil_div(steps, ceil_div(steps, splits)); }

// CUTLASS's TMA loads require a dense x. After merge_kernel_rows the positions of x overlap or have gaps, unless they
// are adjacent.
bool dense(const ConvProblem& problem) {
  const int64_t row = problem.w * problem.c;
  return problem.x_strides[0] == problem.c && problem.x_strides[1] == row && problem.x_strides[2] == problem.h * row;
}

// The limits of TMA's im2col mode: corners of the padded plane are 8 bits, a kernel position is 8 bits of which CUTLASS
// excludes one value, and strides are at most 8. Addresses and strides are multiples of 16 bytes in any case.
// Source: CUDA driver API, cuTensorMapEncodeIm2col; CUTLASS 4.2, sm90_implicit_gemm_gmma_ss_warpspecialized.hpp.
bool fits_tma_im2col(const ConvProblem& problem) {
  const auto side = [&](int i, int64_t kernel) {
    const int64_t reach = (kernel - 1) * problem.dilation[i], upper = problem.padding[i] - reach;
    return problem.padding[i] <= 128 && upper >= -128 && upper <= 127 && reach <= 254 && problem.stride[i] <= 8;
  };
  return side(0, problem.r) && side(1, problem.s);
}

// True if every pixel of x begins at 16 bytes, as its first does: after merge_kernel_rows a row or an image may not.
bool aligned(const ConvProblem& problem) {
  const int64_t multiple = vector(problem.type);
  return problem.c % multiple == 0 && std::all_of(std::begin(problem.x_strides), std::end(problem.x_strides),
                                                  [&](int64_t stride) { return stride % multiple == 0; });
}

// Used only if it is named: no GPU has run it yet.
constexpr std::string_view UNMEASURED = "wgmma-256x128";

// Returns why the tile cannot compute the problem; empty if it can.
std::string_view tile_reason(const Cost& cost, const ConvProblem& problem, bool wgmma) {
  if (!aligned(problem)) return "its input is read by 4 channels, for which there is one tile without a name";
  if (problem.type == ScalarType::Float && cost.n > 64) return "float32 has the tiles mma-128x64 and mma-64x64";
  if (!cost.tma) return "";
  if (problem.type == ScalarType::Float) return "wgmma is used for float16 and bfloat16";
  if (!wgmma) return "wgmma is in libraries built for 9.0a, on a GPU of compute capability 9.0";
  if (!dense(problem)) return "TMA reads a dense input, and in this one the rows of the kernel overlap or have gaps";
  if (!fits_tma_im2col(problem))
    return "TMA takes strides up to 8, padding up to 128 and kernels that reach 254 pixels";
  return "";
}

}  // namespace

int64_t conv_channels(int64_t c, ScalarType type, int64_t dilation_w) {
  if (merges_kernel_rows(c, dilation_w)) return STEM_CHANNELS;
  return ceil_div(c, vector(type)) * vector(type);
}

void merge_kernel_rows(ConvProblem& problem) {
  problem.x_strides[0] = problem.stride[1] * problem.c;
  problem.w = problem.q;
  problem.c *= problem.s;
  problem.s = problem.stride[1] = 1;
}

std::string conv_reasons(const ConvProblem& problem) {
  if (!problem.pixels()) return "";  // nothing is launched
  std::string all;
  const auto need = [&](bool met, const std::string& expected, const auto& got) {
    if (!met) all += (all.empty() ? "" : "; ") + expected + ", got " + got;
  };
  const auto need_small = [&](double elements, const std::string& expected) {
    const double size = elements * bytes(problem.type);
    need(size < MAX_BYTES, expected, std::to_string(int64_t(std::ceil(size / (1 << 30)))) + " GiB");
  };
  const bool fp64 = problem.type == ScalarType::Double;
  const int64_t multiple = vector(problem.type), kernel = std::max(problem.r, problem.s);
  need(!problem.channels_first, "input: expected channels_last", "NCHW");
  need(!fp64, "input: expected float16, bfloat16 or float32", "float64");
  need(problem.groups == 1, "groups: expected 1", std::to_string(problem.groups));
  need(fp64 || problem.k % multiple == 0,
       "weight: expected a multiple of " + std::to_string(multiple) + " output channels", std::to_string(problem.k));
  need(kernel <= MAX_KERNEL, "weight: expected a kernel of at most 32 x 32", std::to_string(kernel));
  need_small(extent(problem), "input: expected less than 2 GiB, padding included");
  need_small(double(problem.pixels()) * problem.k, "output: expected less than 2 GiB");
  need_small(double(problem.k) * double(problem.r * problem.s) * double(problem.c), "weight: expected less than 2 GiB");
  return all;
}

std::string conv_tiles() {
  std::string all;
  for (const Cost& cost : COSTS) all += std::string(all.empty() ? "" : ", ") + std::string(cost.name);
  return all;
}

const char* conv_tile_name(std::string_view name) {
  if (name.empty()) return "";
  for (const Cost& cost : COSTS)
    if (cost.name == name) return cost.name.data();
  return nullptr;
}

ConvPlan conv_plan(const ConvProblem& problem, const Target& target) {
  ConvPlan best{Tile::stem, 1, 0};  // if no other tile can compute it
  double least = std::numeric_limits<double>::infinity();
  for (const Cost& cost : COSTS) {
    if (target.tile.empty() ? cost.name == UNMEASURED : cost.name != target.tile) continue;
    const std::string_view reason = tile_reason(cost, problem, target.wgmma);
    STD_TORCH_CHECK(reason.empty() || target.tile.empty(), cost.name, " cannot compute this convolution: ", reason);
    if (!reason.empty()) continue;
    const int64_t steps = cost.steps(problem), max_splits = cost.tma ? 1 : std::min(steps, MAX_SPLITS);
    for (int64_t splits = 1; splits <= max_splits; ++splits) {
      const double clocks = cost.clocks(problem, splits, gpu(target.chip), target.multiprocessors);
      if (filled_splits(steps, splits) != splits || clocks >= least) continue;
      const size_t partial = splits > 1 ? size_t(splits) * problem.pixels() * problem.k * sizeof(float) : 0;
      least = clocks, best = {cost.tile, int(splits), partial, cost.tma, target.multiprocessors};
    }
  }
  return best;
}

}  // namespace atrous::cuda
