// _winograd_weight: u[k / 16][position][c][k % 16] = (G g G')[position] of tiles of 2x2, 4x2 or 4x4 outputs, output
// channels padded with zeros to 16.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "../../op_adapter.h"
#include "../channels.h"
#include "plan.h"
#include "quantize.h"
#include "transform.h"

namespace atrous::cpu {

using namespace winograd;

namespace {

constexpr int64_t DEPTH = 16;  // input channels read together: a cache line of fp32 if they are innermost

template <class T>
using Taps = T[9][DEPTH][PANEL];

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
// the lines that it writes may share a cache set.
template <int M, int N, class T>
void transform_channel(const Taps<T>& taps, int64_t c, float* u, int64_t step) {
  constexpr int POSITIONS = (M + 2) * (N + 2);
  float lines[POSITIONS][PANEL];
  for (int64_t k = 0; k < PANEL; k += 4) {
    Vector<4, double> g[9], result[POSITIONS];
    for (int64_t i = 0; i < 9; ++i) {
      Vector<4, T> tap;
      std::memcpy(&tap, &taps[i][c][k], sizeof tap);
      g[i] = __builtin_convertvector(tap, Vector<4, double>);
    }
    transform_weight<M, N>(g, result);
    for (int64_t i = 0; i < POSITIONS; ++i) {
      const auto rounded = __builtin_convertvector(result[i], Vector<4>);
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
};

template <class S>
void transform_block(const Block<S>& block, int64_t positions) {
  Taps<Wide<S>> taps;
  if (block.width < PANEL) std::memset(taps, 0, sizeof taps);
  read_taps(block.data, block.strides, block.depth, block.width, taps);
  with_tile(positions, [&](auto rows, auto columns) {
    for (int64_t c = 0; c < block.depth; ++c)
      transform_channel<rows.value, columns.value>(taps, c, block.u + c * PANEL, block.step);
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
  for (int64_t pair = 0; pair < pairs; ++pair)
    for (int k = 0; k < PANEL; ++k)
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t c = 2 * pair + i;
        const float value = c < channels ? u[c * PANEL + k] * factors[k] : 0;
        integers[(pair * PANEL + k) * 2 + i] = int16_t(int32_t(std::rint(value)));
      }
}

Tensor quantized(const Tensor& transformed) {
  const Sizes sizes = to_vector(transformed.sizes());
  const int64_t channels = sizes[2], pairs = (channels + CHUNK - 1) / CHUNK * CHUNK / 2, step = (pairs + 1) * 2 * PANEL;
  Tensor result =
      torch::stable::new_empty(transformed, Sizes{sizes[0], sizes[1], pairs + 1, 2 * PANEL}, ScalarType::Short);
  const float* u = transformed.const_data_ptr<float>();
  int16_t* integers = static_cast<int16_t*>(result.mutable_data_ptr());
  torch::stable::parallel_for(0, sizes[0] * sizes[1], 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int16_t* own = integers + i * step;
      quantize_panel(u + i * channels * PANEL, channels, pairs, own, reinterpret_cast<float*>(own + pairs * 2 * PANEL));
    }
  });
  return result;
}

}  // namespace

Tensor winograd_weight(const Tensor& weight, bool turned, const Sizes& tile, bool int16) {
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
  const int64_t positions = check_tile(tile).positions();
  Tensor transformed = torch::stable::new_empty(weight, Sizes{panels, positions, channels, PANEL}, ScalarType::Float);
  float* u = transformed.mutable_data_ptr<float>();
  with_storage(weight, [&](auto* data) {
    torch::stable::parallel_for(0, panels * blocks, 4, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t k = block / blocks * PANEL, c = block % blocks * DEPTH;
        using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
        transform(Block<S>{data + first_tap + k * strides[0] + c * strides[1], strides, std::min(DEPTH, channels - c),
                           std::min(PANEL, sizes[0] - k), u + (block / blocks * positions * channels + c) * PANEL,
                           channels * PANEL},
                  positions);
      }
    });
  });
  return int16 ? quantized(transformed) : transformed;
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_winograd_weight", TORCH_BOX(&winograd_weight)); }

}  // namespace atrous::cpu
