// _winograd_weight: u[k / 16][position][c][k % 16] = (G g G')[position], output channels padded with zeros to 16.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "../../op_adapter.h"
#include "../channels.h"
#include "transform.h"

namespace atrous::cpu {

using namespace winograd;

namespace {

constexpr int64_t DEPTH = 16;  // input channels read together: a cache line of fp32 if they are innermost

template <class T>
using Taps = T[9][DEPTH][PANEL];

template <class T, int COUNT>
using SimdVector __attribute__((vector_size(COUNT * sizeof(T)))) = T;

// Reads the taps of `depth` input and `width` output channels, at any strides.
template <class S>
void read_taps(const S* data, const Sizes& strides, int64_t depth, int64_t width, Taps<Wide<S>>& taps) {
  const int64_t across = strides[0], down = strides[1];
  for (int64_t i = 0; i < 9; ++i) {
    const S* tap = data + i / 3 * strides[2] + i % 3 * strides[3];
    for (int64_t c = 0; c < depth; ++c)
      for (int64_t k = 0; k < width; ++k) taps[i][c][k] = widen(tap[k * across + c * down]);
  }
}

// Transforms one input channel of a panel, four output channels at a time, and then stores whole cache lines, because
// the 16 lines that it writes share a cache set.
template <class T>
void transform_channel(const Taps<T>& taps, int64_t c, float* u, int64_t step) {
  float lines[POSITIONS][PANEL];
  for (int64_t k = 0; k < PANEL; k += 4) {
    SimdVector<double, 4> g[9], result[POSITIONS];
    for (int64_t i = 0; i < 9; ++i) {
      SimdVector<T, 4> tap;
      std::memcpy(&tap, &taps[i][c][k], sizeof tap);
      g[i] = __builtin_convertvector(tap, SimdVector<double, 4>);
    }
    transform_weight(g, result);
    for (int64_t i = 0; i < POSITIONS; ++i) {
      const auto rounded = __builtin_convertvector(result[i], SimdVector<float, 4>);
      std::memcpy(&lines[i][k], &rounded, sizeof rounded);
    }
  }
  for (int64_t i = 0; i < POSITIONS; ++i) std::memcpy(u + i * step, lines[i], sizeof lines[i]);
}

template <class S>
void transform_block(const S* data, const Sizes& strides, int64_t depth, int64_t width, float* u, int64_t step) {
  Taps<Wide<S>> taps;
  if (width < PANEL) std::memset(taps, 0, sizeof taps);
  read_taps(data, strides, depth, width, taps);
  for (int64_t c = 0; c < depth; ++c) transform_channel(taps, c, u + c * PANEL, step);
}

// transform_block, compiled for each instruction set and storage type.
#define ATROUS_TRANSFORM(S)                                                                                 \
  ATROUS_CLONES void transform(const S* data, const Sizes& strides, int64_t depth, int64_t width, float* u, \
                               int64_t step) {                                                              \
    transform_block(data, strides, depth, width, u, step);                                                  \
  }
ATROUS_TRANSFORM(float)
ATROUS_TRANSFORM(double)
ATROUS_TRANSFORM(Half)
ATROUS_TRANSFORM(BFloat16)

}  // namespace

// turned: rotates the kernel by 180 degrees and swaps input and output channels, for the gradient of the input.
Tensor winograd_weight(const Tensor& weight, bool turned) {
  check_floating("weight", weight);
  Sizes sizes = to_vector(weight.sizes()), strides = to_vector(weight.strides());
  STD_TORCH_CHECK(sizes.size() == 4 && sizes[2] == 3 && sizes[3] == 3, "weight: expected shape [K, C, 3, 3], got ",
                  to_string(sizes));
  int64_t first_tap = 0;
  if (turned) {
    std::swap(sizes[0], sizes[1]);
    std::swap(strides[0], strides[1]);
    first_tap = 2 * strides[2] + 2 * strides[3];
    strides[2] = -strides[2];
    strides[3] = -strides[3];
  }
  const int64_t channels = sizes[1], panels = (sizes[0] + PANEL - 1) / PANEL, blocks = (channels + DEPTH - 1) / DEPTH;
  Tensor transformed = torch::stable::new_empty(weight, Sizes{panels, POSITIONS, channels, PANEL}, ScalarType::Float);
  float* u = transformed.mutable_data_ptr<float>();
  with_storage(weight, [&](auto* data) {
    torch::stable::parallel_for(0, panels * blocks, 4, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t k = block / blocks * PANEL, c = block % blocks * DEPTH;
        transform(data + first_tap + k * strides[0] + c * strides[1], strides, std::min(DEPTH, channels - c),
                  std::min(PANEL, sizes[0] - k), u + (block / blocks * POSITIONS * channels + c) * PANEL,
                  channels * PANEL);
      }
    });
  });
  return transformed;
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_winograd_weight", TORCH_BOX(&winograd_weight)); }

}  // namespace atrous::cpu
