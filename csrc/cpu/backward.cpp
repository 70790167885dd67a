// _epilogue_backward: the gradients of z and of a residual added before the activation.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "../op_adapter.h"
#include "gradient.h"

namespace atrous::cpu {

namespace {

// dz = scale * (du - offset - (z - mean) * weight), with scale, offset, mean and weight per channel; without BatchNorm
// scale is 1.
template <class T>
struct Constants {
  bool batch;  // mean and var are the batch's; otherwise dz = scale * du
  const std::vector<T>& scale;
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

template <class S>
Constants<Wide<S>> constants_of(const GradientInputs<S>& inputs, const Epilogue& arguments,
                                const OptionalTensor& means) {
  using T = Wide<S>;
  const int64_t channels = inputs.layout.channels;
  Constants<T> constants{arguments.mean && means, inputs.vectors.scale, std::vector<T>(channels),
                         std::vector<T>(channels)};
  if (!constants.batch) return constants;
  const T* values = means->const_data_ptr<T>();
  for (int64_t i = 0; i < channels; ++i) {
    constants.offset[i] = values[i * means->stride(1)];
    constants.weight[i] = values[means->stride(0) + i * means->stride(1)] * inputs.factor[i];
  }
  return constants;
}

template <class S>
void parallel_backward(const Epilogue& arguments, const Tensor& grad, const S* z, const Layout& layout,
                       const OptionalTensor& means, S* dz, S* residual) {
  const GradientInputs<S> inputs(arguments, grad, z, layout);
  const Constants<Wide<S>> constants = constants_of(inputs, arguments, means);
  const WorkPartition partition(layout);
  torch::stable::parallel_for(0, partition.size(), partition.grain(), [&](int64_t begin, int64_t end) {
    TileGradients<Wide<S>> gradients;
    for (int64_t i = begin; i < end; ++i)
      for_tiles<Wide<S>>(partition[i], layout.channels_last, [&](const Tile& tile) {
        differentiate(inputs, tile, gradients);
        write(gradients, tile, constants, layout.channels_last, dz, residual);
      });
  });
}

}  // namespace

std::tuple<Tensor, Tensor> epilogue_backward(const Epilogue& arguments, const Tensor& grad, const Tensor& z,
                                             const OptionalTensor& means, bool need_z, bool need_residual) {
  const Order order = check_gradient(arguments, grad, z);
  check_means(means, z);
  const auto result = [&](bool needed) {
    return needed ? torch::stable::empty_like(z) : torch::stable::new_empty(z, Sizes{0});
  };
  Tensor dz = result(need_z), residual = result(need_residual);
  if (z.numel() && (need_z || need_residual))
    with_storage(z, [&](auto* data) {
      using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
      const auto place = [](Tensor& tensor, bool needed) {
        return needed ? static_cast<S*>(tensor.mutable_data_ptr()) : nullptr;
      };
      parallel_backward(arguments, grad, data, Layout(z, order), means, place(dz, need_z),
                        place(residual, need_residual));
    });
  return {dz, residual};
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) {
  m.impl("_epilogue_backward", TORCH_BOX(&OpAdapter<&epilogue_backward>::call));
}

}  // namespace atrous::cpu
