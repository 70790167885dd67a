// _epilogue_backward: the gradients of z and of a residual added before the activation.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "../op_adapter.h"
#include "gradient.h"

namespace atrous {

namespace {

// dz = scale * (du - offset - (z - mean) * weight), with scale, offset, mean and weight per channel; without BatchNorm
// scale is 1.
template <class T>
struct Constants {
  bool batch;  // mean and var are the batch's; otherwise dz = scale * du
  const T* scale;
  std::vector<T> offset, weight;
};

template <bool CHANNELS_LAST, class S, class T>
void write_row(const T* du, const T* deviation, const T* scale, const T* offset, const T* weight, int64_t length,
               S* dz) {
  ATROUS_INDEPENDENT
  for (int64_t i = 0; i < length; ++i) {
    const int64_t channel = CHANNELS_LAST ? i : 0;
    dz[i] = narrow<S>(std::fma(-deviation[i], weight[channel], du[i] - offset[channel]) * scale[channel]);
  }
}

template <bool CHANNELS_LAST, class S, class T>
void write_row(const T* du, const T* scale, int64_t length, S* dz) {
  ATROUS_INDEPENDENT
  for (int64_t i = 0; i < length; ++i) dz[i] = narrow<S>(du[i] * scale[CHANNELS_LAST ? i : 0]);
}

template <bool CHANNELS_LAST, class S, class T>
void write_tile(const TileGradients<T>& gradients, const Tile& tile, const Constants<T>& constants, S* dz,
                S* residual) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    const T *du = gradients.du + row * tile.pitch, *deviation = gradients.deviation + row * tile.pitch;
    const int64_t channel = tile.channel + (CHANNELS_LAST ? 0 : row), at = tile.at + row * tile.stride;
    const T* scale = &constants.scale[channel];
    if (dz && constants.batch)
      write_row<CHANNELS_LAST>(du, deviation, scale, &constants.offset[channel], &constants.weight[channel],
                               tile.length, dz + at);
    else if (dz)
      write_row<CHANNELS_LAST>(du, scale, tile.length, dz + at);
    if (residual)
      for (int64_t i = 0; i < tile.length; ++i) residual[at + i] = narrow<S>(du[i]);
  }
}

#define ATROUS_WRITE(S)                                                                                   \
  ATROUS_CLONES void write(const TileGradients<Wide<S>>& gradients, const Tile& tile,                     \
                           const Constants<Wide<S>>& constants, bool channels_last, S* dz, S* residual) { \
    channels_last ? write_tile<true>(gradients, tile, constants, dz, residual)                            \
                  : write_tile<false>(gradients, tile, constants, dz, residual);                          \
  }
ATROUS_WRITE(float)
ATROUS_WRITE(double)
ATROUS_WRITE(Half)
ATROUS_WRITE(BFloat16)

}  // namespace

template <class S>
void write_gradients(const GradientInputs<S>& inputs, const Wide<S>* means, S* dz, S* du) {
  using T = Wide<S>;
  const Layout& layout = inputs.layout;
  Constants<T> constants{inputs.batch_norm && means, inputs.vectors.scale, {}, inputs.factor};
  if (constants.batch) {
    const int64_t own = layout.own_channels();
    constants.offset.assign(means, means + own);
    constants.offset.resize(layout.channels);
    for (int64_t i = 0; i < own; ++i) constants.weight[i] *= means[own + i];
    for (std::vector<T>* values : {&constants.offset, &constants.weight}) repeat(values->data(), own, layout.channels);
  }
  const WorkPartition partition(layout);
  torch::stable::parallel_for(0, partition.size(), partition.grain(), [&](int64_t begin, int64_t end) {
    TileGradients<T> gradients;
    for (int64_t i = begin; i < end; ++i)
      for_tiles<T>(partition[i], layout.channels_last, [&](const Tile& tile) {
        differentiate(inputs, tile, gradients);
        write(gradients, tile, constants, layout.channels_last, dz, du);
      });
  });
}

template void write_gradients(const GradientInputs<float>&, const float*, float*, float*);
template void write_gradients(const GradientInputs<double>&, const double*, double*, double*);
template void write_gradients(const GradientInputs<Half>&, const float*, Half*, Half*);
template void write_gradients(const GradientInputs<BFloat16>&, const float*, BFloat16*, BFloat16*);

namespace cpu {

namespace {

// The first two rows, at any strides; empty without means.
template <class T>
std::vector<T> rows_of(const OptionalTensor& means, int64_t channels) {
  if (!means) return {};
  const T* data = means->const_data_ptr<T>();
  std::vector<T> rows(2 * channels);
  for (int64_t i = 0; i < 2 * channels; ++i)
    rows[i] = data[i / channels * means->stride(0) + i % channels * means->stride(1)];
  return rows;
}

}  // namespace

std::tuple<Tensor, Tensor> epilogue_backward(Epilogue& arguments, Tensor& grad, const Tensor& z,
                                             const OptionalTensor& means, bool need_z, bool need_residual) {
  const Order order = fit_gradient(arguments, grad, z);
  check_means(means, z);
  Tensor dz = new_if(need_z, z), du = new_if(need_residual, z);
  if (z.numel() && (need_z || need_residual))
    with_storage(z, [&](auto* data) {
      using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
      const Layout layout(z, order);
      const GradientInputs<S> inputs(arguments, grad, data, layout);
      const std::vector<Wide<S>> rows = rows_of<Wide<S>>(means, layout.channels);
      write_gradients(inputs, means ? rows.data() : nullptr, data_if<S>(need_z, dz), data_if<S>(need_residual, du));
    });
  return {dz, du};
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_epilogue_backward", &OpAdapter<&epilogue_backward>::call); }

}  // namespace cpu

}  // namespace atrous
