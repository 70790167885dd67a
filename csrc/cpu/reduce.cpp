// _epilogue_reduce: the sums for dbeta, dgamma and dslope of each channel.
#include <torch/csrc/stable/ops.h>

#include "gradient.h"
#include "lanes.h"
#include "primitives.h"

namespace atrous::cpu {

namespace {

// A channel is a row of the tile: its sum over lanes.
template <class T>
T sum_of_row(const T* values, int64_t length) {
  Lanes<T> sum{}, part{};
  for (int64_t i = 0; i < length; i += Lanes<T>::size) {
    part.load(values + i);
    sum.add(part);
  }
  return sum.total();
}

template <class T>
void add_part(const T* part, const Tile& tile, bool channels_last, T* sums) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    const T* values = part + row * tile.pitch;
    if (channels_last)
      for (int64_t i = 0; i < tile.length; ++i) sums[i] += values[i];
    else
      sums[row] += sum_of_row(values, tile.length);
  }
}

// sums[part][channel], `channels` apart, of the tile's channels.
template <class T>
void add_parts(Parts<T>& parts, const Tile& tile, bool channels_last, bool with_slope, T* sums, int64_t channels) {
  add_part(parts.du, tile, channels_last, sums);
  for (int64_t i = 0; i < tile.rows * tile.pitch; ++i) parts.deviation[i] *= parts.du[i];
  add_part(parts.deviation, tile, channels_last, sums + channels);
  if (with_slope) add_part(parts.slope, tile, channels_last, sums + 2 * channels);
}

#define ATROUS_ADD(T)                                                                                     \
  ATROUS_CLONES void add(Parts<T>& parts, const Tile& tile, bool channels_last, bool with_slope, T* sums, \
                         int64_t channels) {                                                              \
    add_parts(parts, tile, channels_last, with_slope, sums, channels);                                    \
  }
ATROUS_ADD(float)
ATROUS_ADD(double)

// All slots' sums, [slot][3][channel], slot after slot in fp64.
template <class T>
std::vector<double> combine(const std::vector<T>& sums, int64_t count) {
  std::vector<double> total(count);
  for (auto slot = sums.begin(); slot != sums.end(); slot += count)
    for (int64_t i = 0; i < count; ++i) total[i] += slot[i];
  return total;
}

template <class S>
std::vector<double> sums_of(const Source<S>& source) {
  using T = Wide<S>;
  const int64_t channels = source.layout.channels;
  const bool channels_last = source.layout.channels_last, with_slope = source.slope == Slope::tensor;
  const Cut cut(source.layout);
  std::vector<T> sums(cut.slots() * 3 * channels);
  torch::stable::parallel_for(0, cut.size(), cut.grain(), [&](int64_t begin, int64_t end) {
    Parts<T> parts;
    for (int64_t i = begin; i < end; ++i)
      for_tiles<T>(cut[i], channels_last, [&](const Tile& tile) {
        differentiate(source, tile, parts);
        add(parts, tile, channels_last, with_slope, &sums[cut.slot(i) * 3 * channels + tile.channel], channels);
      });
  });
  return combine(sums, 3 * channels);
}

template <class S>
void launch(const Arguments& arguments, const Tensor& grad, const S* z, const Layout& layout, Tensor& result) {
  const Source<S> source(arguments, grad, z, layout);
  std::vector<double> sums = sums_of(source);
  for (int64_t i = 0; i < layout.channels; ++i) {
    double& weighted = sums[layout.channels + i];
    weighted = arguments.mean ? weighted * source.factor[i] : 0;
  }
  std::copy(sums.begin(), sums.end(), result.mutable_data_ptr<Wide<S>>());
}

}  // namespace

Tensor epilogue_reduce(const Arguments& arguments, const Tensor& grad, const Tensor& z) {
  const Order order = check_gradient(arguments, grad, z);
  Tensor result = torch::stable::new_zeros(z, Sizes{3, z.size(1)}, wide_type(z));
  if (z.numel()) with_storage(z, [&](auto* data) { launch(arguments, grad, data, Layout(z, order), result); });
  return result;
}

}  // namespace atrous::cpu
