// _epilogue_reduce: per-channel sums for dbeta, dgamma and dslope.
#include <torch/csrc/stable/ops.h>

#include "../op_adapter.h"
#include "gradient.h"
#include "lanes.h"

namespace atrous {

namespace {

// The three sums of one channel, or of one channel per lane.
template <class T, bool WITH_SLOPE>
struct Sums {
  Lanes<T> du{}, weighted{}, slope{};

  void add(const TileGradients<T>& gradients, int64_t at) {
    Lanes<T> values{}, deviation{};
    values.load(gradients.du + at);
    deviation.load(gradients.deviation + at);
    du.add(values);
    for (int i = 0; i < 4; ++i) weighted.part[i] += values.part[i] * deviation.part[i];
    if (!WITH_SLOPE) return;
    values.load(gradients.slope + at);
    slope.add(values);
  }
};

// Channels last: sums along the columns.
template <bool WITH_SLOPE, class T>
void add_columns(const TileGradients<T>& gradients, const Tile& tile, T* sums, int64_t channels) {
  for (int64_t column = 0; column < tile.length; column += Lanes<T>::size) {
    Sums<T, WITH_SLOPE> sum;
    for (int64_t row = 0; row < tile.rows; ++row) sum.add(gradients, row * tile.pitch + column);
    const int64_t width = std::min(Lanes<T>::size, tile.length - column);
    sum.du.add_to(sums + column, width);
    sum.weighted.add_to(sums + channels + column, width);
    if (WITH_SLOPE) sum.slope.add_to(sums + 2 * channels + column, width);
  }
}

// Channels first: sums along the rows, which are padded with zeros.
template <bool WITH_SLOPE, class T>
void add_rows(const TileGradients<T>& gradients, const Tile& tile, T* sums, int64_t channels) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    Sums<T, WITH_SLOPE> sum;
    for (int64_t i = 0; i < tile.length; i += Lanes<T>::size) sum.add(gradients, row * tile.pitch + i);
    sums[row] += sum.du.total();
    sums[channels + row] += sum.weighted.total();
    if (WITH_SLOPE) sums[2 * channels + row] += sum.slope.total();
  }
}

// Adds a tile to sums[0..2][channel], which are `channels` apart.
template <bool WITH_SLOPE, class T>
void add_tile(const TileGradients<T>& gradients, const Tile& tile, bool channels_last, T* sums, int64_t channels) {
  channels_last ? add_columns<WITH_SLOPE>(gradients, tile, sums, channels)
                : add_rows<WITH_SLOPE>(gradients, tile, sums, channels);
}

#define ATROUS_ADD(T)                                                                                              \
  ATROUS_CLONES void add(const TileGradients<T>& gradients, const Tile& tile, bool channels_last, bool with_slope, \
                         T* sums, int64_t channels) {                                                              \
    with_slope ? add_tile<true>(gradients, tile, channels_last, sums, channels)                                    \
               : add_tile<false>(gradients, tile, channels_last, sums, channels);                                  \
  }
ATROUS_ADD(float)
ATROUS_ADD(double)

// The total of [slot][3][repeat][channel] over the slots, then over the repeats, added in order in fp64.
template <class T>
std::vector<double> combine(const std::vector<T>& sums, const Layout& layout) {
  const int64_t channels = layout.own_channels(), count = 3 * layout.channels;
  std::vector<double> all(count), total(3 * channels);
  for (auto slot = sums.begin(); slot != sums.end(); slot += count)
    for (int64_t i = 0; i < count; ++i) all[i] += slot[i];
  for (int64_t i = 0; i < count; ++i) total[i / layout.channels * channels + i % channels] += all[i];
  return total;
}

}  // namespace

template <class S>
std::vector<Wide<S>> gradient_sums(const GradientInputs<S>& inputs) {
  using T = Wide<S>;
  const int64_t channels = inputs.layout.channels;
  const bool channels_last = inputs.layout.channels_last, with_slope = inputs.slope == Slope::tensor;
  const WorkPartition partition(inputs.layout);
  std::vector<T> sums(partition.slots() * 3 * channels);
  torch::stable::parallel_for(0, partition.size(), partition.grain(), [&](int64_t begin, int64_t end) {
    TileGradients<T> gradients;
    for (int64_t i = begin; i < end; ++i)
      for_tiles<T>(partition[i], channels_last, [&](const Tile& tile) {
        differentiate(inputs, tile, gradients);
        add(gradients, tile, channels_last, with_slope, &sums[partition.slot(i) * 3 * channels + tile.channel],
            channels);
      });
  });
  const std::vector<double> total = combine(sums, inputs.layout);
  sums.assign(total.begin(), total.end());
  const int64_t own = inputs.layout.own_channels();
  for (int64_t i = 0; i < own; ++i) sums[own + i] = inputs.batch_norm ? total[own + i] * inputs.factor[i] : 0;
  return sums;
}

template std::vector<float> gradient_sums(const GradientInputs<float>&);
template std::vector<double> gradient_sums(const GradientInputs<double>&);
template std::vector<float> gradient_sums(const GradientInputs<Half>&);
template std::vector<float> gradient_sums(const GradientInputs<BFloat16>&);

namespace cpu {

Tensor epilogue_reduce(Epilogue& arguments, Tensor& grad, const Tensor& z) {
  const Order order = fit_gradient(arguments, grad, z);
  Tensor result = torch::stable::new_zeros(z, Sizes{3, z.size(1)}, wide_type(z));
  if (z.numel() == 0) return result;
  with_storage(z, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const Layout layout(z, order);
    const std::vector<Wide<S>> sums = gradient_sums(GradientInputs<S>(arguments, grad, data, layout));
    std::copy(sums.begin(), sums.end(), result.mutable_data_ptr<Wide<S>>());
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_epilogue_reduce", &OpAdapter<&epilogue_reduce>::call); }

}  // namespace cpu

}  // namespace atrous
