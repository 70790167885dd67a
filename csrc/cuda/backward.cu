// _epilogue_backward: the gradients of z and of a residual added before the activation.
#include <torch/csrc/stable/ops.h>

#include "../kernel_args.h"
#include "device.h"
#include "elements.cuh"
#include "elementwise.cuh"
#include "ops.h"
#include "static_switch.h"

namespace atrous::cuda {

namespace {

// dz = scale * (du - offset - (z - mean) * weight), with scale, offset, mean and weight per channel; without BatchNorm
// scale is 1.
template <class T>
struct BatchChannel {
  Channel<T> channel;
  T mean, offset, weight;
};

struct Means {
  ChannelVector mean, plain, weighted;  // the last two are absent if mean and var are constants

  template <class T>
  __device__ BatchChannel<T> at(const ChannelVectors& vectors, int64_t channel) const {
    const T zero(0), weight = weighted.data ? weighted.read(channel, zero) * vectors.factor<T>(channel) : zero;
    return {vectors.at<T>(channel), mean.read(channel, zero), plain.read(channel, zero), weight};
  }
};

// dz and du may each be null.
template <class S, Slope SLOPE, Residual RESIDUAL, bool DROPOUT>
__global__ void __launch_bounds__(THREADS, 2)
    backward_kernel(const S* __restrict__ grad, const S* __restrict__ z, const S* __restrict__ residual,
                    S* __restrict__ dz, S* __restrict__ du, ElementwiseTiling tiling, ChannelVectors vectors,
                    Means means) {
  using T = Wide<S>;
  constexpr int SIZE = AlignedVector<S>::SIZE;
  __shared__ BatchChannel<T> table[LANES * SIZE];
  BatchChannel<T> channels[SIZE];
  read_channels<SIZE>(tiling, table, channels, [&](int64_t channel) { return means.at<T>(vectors, channel); });
  const int64_t column = tiling.column(SIZE);
  if (column >= tiling.cols) return;
  const int count = int(min(tiling.cols - column, int64_t(SIZE)));
  const Draw<T> draw = vectors.draw<T>();
  tiling.for_each_vector(column, [&](int64_t at, auto unmasked) {
    AlignedVector<S> dy = load(grad + at, count, unmasked), values = load(z + at, count, unmasked), others{};
    if (RESIDUAL != Residual::none) others = load(residual + at, count, unmasked);
    const uint64_t index = DROPOUT ? tiling.layout.index(at) : 0;
#pragma unroll
    for (int i = 0; i < SIZE; ++i) {
      Channel<T> channel = channels[i].channel;
      const T keep = draw_slope_and_keep<SLOPE, DROPOUT>(draw, vectors.draws_slope,
                                                         index + i * tiling.layout.index_step(), channel.slope);
      const T value = widen(values.at[i]), residual_value = widen(others.at[i]);
      const T result = gradient<T, SLOPE, RESIDUAL, DROPOUT>(widen(dy.at[i]), value, channel, vectors.draws_slope,
                                                             residual_value, keep)
                           .du;
      const T centred = means.plain.data
                            ? std::fma(channels[i].mean - value, channels[i].weight, result - channels[i].offset)
                            : result;
      others.at[i] = narrow<S>(result);
      values.at[i] = narrow<S>(centred * channel.affine.scale);
    }
    if (dz) store(dz + at, values, count, unmasked);
    if (du) store(du + at, others, count, unmasked);
  });
}

ChannelVector means_row(const OptionalTensor& means, int64_t row) {
  if (!means) return {};
  const int64_t offset = row * means->stride(0) * means->element_size();
  return {static_cast<const char*>(means->const_data_ptr()) + offset, means->stride(1), means->scalar_type()};
}

template <class S>
void launch_backward(const Epilogue& arguments, const Tensor& grad, const S* z, const Layout& layout,
                     const OptionalTensor& means, S* dz, S* du, const Device& device) {
  constexpr int SIZE = AlignedVector<S>::SIZE;
  const bool before = arguments.place() == Residual::before, batch = arguments.mean && means;
  const S* residual = before ? arguments.residual_data<S>() : nullptr;
  const S* dy = static_cast<const S*>(grad.const_data_ptr());
  const OptionalTensor sums = batch ? means : OptionalTensor();
  const Means constants{vector_of(arguments.mean), means_row(sums, 0), means_row(sums, 1)};
  const ElementwiseTiling tiling(layout, SIZE, aligned(z, residual, dy, dz, du));
  const auto launch_kernel = [&](auto kind, auto place) {
    launch("_epilogue_backward", backward_kernel<S, kind.slope, place.value, kind.dropout>, tiling.blocks(SIZE),
           THREADS, device, dy, z, residual, dz, du, tiling, vectors_of(arguments), constants);
  };
  with_kind(arguments.slope_kind, arguments.dropout > 0,
            [&](auto kind) { with_place_before(before, [&](auto place) { launch_kernel(kind, place); }); });
}

}  // namespace

void backward_pass(const Epilogue& arguments, const Tensor& grad, const Tensor& z, Order order,
                   const OptionalTensor& means, const Tensor& dz, const Tensor& du, const Device& device) {
  with_storage(z, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    launch_backward(arguments, grad, data, Layout(z, order), means, data_if<S>(dz.numel() > 0, dz),
                    data_if<S>(du.numel() > 0, du), device);
  });
}

std::tuple<Tensor, Tensor> epilogue_backward(Epilogue& arguments, Tensor& grad, const Tensor& z,
                                             const OptionalTensor& means, bool need_z, bool need_residual) {
  const Order order = fit_gradient(arguments, grad, z);
  check_means(means, z);
  const Device device("z", z);
  device.check("grad", grad);
  device.check("means", means);
  device.check(arguments);
  const Tensor dz = new_if(need_z, z), du = new_if(need_residual, z);
  if (z.numel() && (need_z || need_residual)) backward_pass(arguments, grad, z, order, means, dz, du, device);
  return {dz, du};
}

STABLE_TORCH_LIBRARY_IMPL(ATROUS_LIBRARY, ATROUS_CUDA_KEY, m) {
  m.impl("_epilogue_backward", &OpAdapter<&epilogue_backward>::call);
}

}  // namespace atrous::cuda
