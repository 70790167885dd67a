// _winograd_weight: u[k / 16][position][c][k % 16] = (G g G')[position] of tiles of 2x2, 4x2 or 4x4 outputs, output
// channels padded with zeros to 16.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "../../op_adapter.h"
#include "../channels.h"
#include "plan.h"
#include "quantize.h"
#include "transform.h"
#include "weight.h"

namespace atrous::winograd {

namespace {

constexpr int64_t DEPTH = 16;  // input channels read together: a cache line of fp32 if they are innermost

template <class T>
using Taps = T[9][DEPTH][PANEL];

// Reads one tap of `depth` input and `width` output channels, at strides `down` and `across`. A whole block that is
// contiguous along either is read in vectors.
template <class S, class T>
void read_tap(const S* tap, int64_t across, int64_t down, int64_t depth, int64_t width, T (&values)[DEPTH][PANEL]) {
  const bool whole = depth == DEPTH && width == PANEL;
  if (whole && across == 1) {
    for (int64_t c = 0; c < DEPTH; ++c)
      for (int64_t k = 0; k < PANEL; ++k) values[c][k] = widen(tap[k + c * down]);
  } else if (whole && down == 1) {
    T transposed[PANEL][DEPTH];
    for (int64_t k = 0; k < PANEL; ++k)
      for (int64_t c = 0; c < DEPTH; ++c) transposed[k][c] = widen(tap[k * across + c]);
    for (int64_t c = 0; c < DEPTH; ++c)
      for (int64_t k = 0; k < PANEL; ++k) values[c][k] = transposed[k][c];
  } else {
    for (int64_t c = 0; c < depth; ++c)
      for (int64_t k = 0; k < width; ++k) values[c][k] = widen(tap[k * across + c * down]);
  }
}

// Transforms one input channel of a panel with values of type V, a few output channels at a time, and then stores whole
// cache lines, because the lines that it writes may share a cache set.
template <int M, int N, class V, class T>
void transform_channel(const Taps<T>& taps, int64_t c, float* u, int64_t step) {
  constexpr int POSITIONS = (M + 2) * (N + 2), LANES = sizeof(V) / sizeof(V{}[0]);
  float lines[POSITIONS][PANEL];
  for (int64_t k = 0; k < PANEL; k += LANES) {
    V g[9], result[POSITIONS];
    for (int64_t i = 0; i < 9; ++i) {
      Vector<LANES, T> tap;
      std::memcpy(&tap, &taps[i][c][k], sizeof tap);
      g[i] = __builtin_convertvector(tap, V);
    }
    transform_weight<M, N>(g, result);
    for (int64_t i = 0; i < POSITIONS; ++i) {
      const auto rounded = __builtin_convertvector(result[i], Vector<LANES>);
      std::memcpy(&lines[i][k], &rounded, sizeof rounded);
    }
  }
  for (int64_t i = 0; i < POSITIONS; ++i) std::memcpy(u + i * step, lines[i], sizeof lines[i]);
}

// A block's taps at `data` and their strides, and where its transforms go.
template <class S>
struct Block {
  const S* data;
  const Sizes& strides;
  int64_t depth, width;  // input and output channels
  float* u;
  int64_t step;  // distance of positions in u
  bool exact;    // computed in fp64
};

template <class S>
void transform_block(const Block<S>& block, int64_t positions) {
  Taps<Wide<S>> taps;
  if (block.width < PANEL) std::memset(taps, 0, sizeof taps);
  for (int64_t i = 0; i < 9; ++i)
    read_tap(block.data + i / 3 * block.strides[2] + i % 3 * block.strides[3], block.strides[0], block.strides[1],
             block.depth, block.width, taps[i]);
  with_tile(positions, [&](auto rows, auto columns) {
    for (int64_t c = 0; c < block.depth; ++c) {
      float* u = block.u + c * PANEL;
      block.exact ? transform_channel<rows.value, columns.value, Vector<4, double>>(taps, c, u, block.step)
                  : transform_channel<rows.value, columns.value, Vector<16>>(taps, c, u, block.step);
    }
  });
}

// transform_block, compiled for each instruction set and storage type.
#define ATROUS_TRANSFORM(S) \
  ATROUS_CLONES void transform(const Block<S>& block, int64_t positions) { transform_block(block, positions); }
ATROUS_TRANSFORM(float)
ATROUS_TRANSFORM(double)
ATROUS_TRANSFORM(Half)
ATROUS_TRANSFORM(BFloat16)

// The int16 form of a transformed weight (multiply.h) and its scales, one for each position and output channel.
ATROUS_CLONES void quantize_panel(const float* u, int64_t channels, int64_t pairs, int16_t* integers, float* scales) {
  int32_t largest[PANEL] = {};
  for (int64_t c = 0; c < channels; ++c)
    for (int k = 0; k < PANEL; ++k) largest[k] = std::max(largest[k], magnitude(u[c * PANEL + k]));
  float factors[PANEL];
  for (int k = 0; k < PANEL; ++k) {
    const Scale scale(largest[k]);
    factors[k] = scale.to_integer;
    scales[k] = scale.to_float;
  }
  const float zeros[PANEL] = {};
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const float* even = 2 * pair < channels ? u + 2 * pair * PANEL : zeros;
    const float* odd = 2 * pair + 1 < channels ? u + (2 * pair + 1) * PANEL : zeros;
    int32_t both[PANEL];  // two channels each, the first in the lower half
    for (int k = 0; k < PANEL; ++k)
      both[k] = (nearest(even[k] * factors[k]) & 0xFFFF) | nearest(odd[k] * factors[k]) * 65536;
    std::memcpy(integers + pair * PANEL * 2, both, sizeof both);
  }
}

// The weight [K, C, 3, 3] at any strides; `turned` swaps the first two and reverses the last two.
template <class S>
struct Weight {
  const S* data;
  Sizes sizes, strides;
  int64_t positions;

  int64_t channels() const { return sizes[1]; }
  int64_t panels() const { return ceil_div(sizes[0], PANEL); }
  // Transforms the DEPTH channels from c on of a panel to u[position][c][16], `step` apart from position to position.
  void transform_channels(int64_t panel, int64_t c, float* u, int64_t step, bool exact) const {
    const int64_t k = panel * PANEL;
    const Block<S> block{data + k * strides[0] + c * strides[1],
                         strides,
                         std::min(DEPTH, channels() - c),
                         std::min(PANEL, sizes[0] - k),
                         u + c * PANEL,
                         step,
                         exact};
    transform(block, positions);
  }
};

template <class S>
void transform_fp32(const Weight<S>& weight, float* u) {
  const int64_t channels = weight.channels(), blocks = ceil_div(channels, DEPTH);
  torch::stable::parallel_for(0, weight.panels() * blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      weight.transform_channels(block / blocks, block % blocks * DEPTH,
                                u + block / blocks * weight.positions * channels * PANEL, channels * PANEL, true);
  });
}

// In fp32 before it is rounded to integers, whose error is far larger.
template <class S>
void transform_int16(const Weight<S>& weight, int16_t* integers) {
  const int64_t positions = weight.positions, channels = weight.channels();
  const int64_t pairs = ceil_div(channels, CHUNK) * CHUNK / 2, step = (pairs + 1) * 2 * PANEL;
  const int64_t apart = odd_lines(channels * PANEL);
  torch::stable::parallel_for(0, weight.panels(), 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> memory;
    float* u = reserve(memory, positions * apart);
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t c = 0; c < channels; c += DEPTH) weight.transform_channels(panel, c, u, apart, false);
      for (int64_t i = 0; i < positions; ++i) {
        int16_t* own = integers + (panel * positions + i) * step;
        quantize_panel(u + i * apart, channels, pairs, own, reinterpret_cast<float*>(own + pairs * 2 * PANEL));
      }
    }
  });
}

}  // namespace

void transform_weight(const Tensor& weight, bool turned, int64_t positions, bool int16, void* u) {
  Sizes sizes = to_vector(weight.sizes()), strides = to_vector(weight.strides());
  int64_t first_tap = 0;
  if (turned) {
    std::swap(sizes[0], sizes[1]);
    std::swap(strides[0], strides[1]);
    first_tap = 2 * strides[2] + 2 * strides[3];
    strides[2] = -strides[2];
    strides[3] = -strides[3];
  }
  with_storage(weight, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const Weight<S> given{data + first_tap, sizes, strides, positions};
    int16 ? transform_int16(given, static_cast<int16_t*>(u)) : transform_fp32(given, static_cast<float*>(u));
  });
}

}  // namespace atrous::winograd

namespace atrous::cpu {

using namespace winograd;

// turned: rotates the kernel by 180 degrees and swaps input and output channels, for the gradient of the input.
// tile: the outputs of a tile, rows and columns. int16: in 16-bit fixed point instead of fp32.
Tensor winograd_weight(const Tensor& weight, bool turned, const Sizes& tile, bool int16) {
  check_floating("weight", weight);
  const Sizes sizes = to_vector(weight.sizes());
  STD_TORCH_CHECK(sizes.size() == 4 && sizes[2] == 3 && sizes[3] == 3, "weight: expected shape [K, C, 3, 3], got ",
                  to_string(sizes));
  const int64_t positions = check_tile(tile).positions();
  Tensor u = torch::stable::new_empty(weight, transformed_sizes(sizes[turned], sizes[!turned], positions, int16),
                                      int16 ? ScalarType::Short : ScalarType::Float);
  transform_weight(weight, turned, positions, int16, u.mutable_data_ptr());
  return u;
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_winograd_weight", TORCH_BOX(&winograd_weight)); }

}  // namespace atrous::cpu
