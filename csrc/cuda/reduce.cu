// _epilogue_reduce: per-channel sums for dbeta, dgamma and dslope.
#include <torch/csrc/stable/ops.h>

#include "../kernel_args.h"
#include "device.h"
#include "elements.cuh"
#include "ops.h"
#include "reduction.cuh"
#include "static_switch.h"

namespace atrous::cuda {

namespace {

template <class T>
struct Sums {
  T du, weighted, slope;

  __device__ void combine(const Sums& other) {
    du += other.du;
    weighted += other.weighted;
    slope += other.slope;
  }
};

template <class T>
struct CentredChannel {
  Channel<T> channel;
  T mean;
};

// Vectors in flight per thread and tensor. With two blocks per multiprocessor, one vector of each of three tensors or
// two of each of two hide the memory latency, and fit into 128 registers beside the channels' parameters. A kernel that
// draws is bound by the generator: it has one block and one vector in flight.
template <Residual RESIDUAL, bool DROPOUT>
constexpr int IN_FLIGHT = DROPOUT || RESIDUAL != Residual::none ? 1 : 2;

template <class S, Slope SLOPE, Residual RESIDUAL, bool DROPOUT>
__global__ void __launch_bounds__(THREADS, DROPOUT ? 1 : 2)
    reduce_kernel(const S* __restrict__ grad, const S* __restrict__ z, const S* __restrict__ residual,
                  Sums<Wide<S>>* __restrict__ partial, Reduction reduction, ChannelVectors vectors) {
  using T = Wide<S>;
  constexpr int SIZE = AlignedVector<S>::SIZE;
  __shared__ Sums<T> table[THREADS * SIZE];
  __shared__ CentredChannel<T> channel_table[MAX_LANES * SIZE];
  CentredChannel<T> channels[SIZE];
  reduction.read_channels<SIZE>(channel_table, channels, [&](int64_t channel) {
    return CentredChannel<T>{vectors.at<T>(channel), vectors.mean.read(channel, T(0))};
  });
  const Draw<T> draw = vectors.draw<T>();
  Sums<T> own[SIZE] = {};
  struct Inputs {
    AlignedVector<S> dy, z, residual;
  };
  const auto load_inputs = [&](const Access& access, auto unmasked) {
    const auto load_from = [&](const S* tensor) { return load(tensor + access.at, access.count, unmasked); };
    Inputs inputs{load_from(grad), load_from(z), {}};
    if (RESIDUAL != Residual::none) inputs.residual = load_from(residual);
    return inputs;
  };
  reduction.for_each_vector<SIZE, IN_FLIGHT<RESIDUAL, DROPOUT>>(
      load_inputs, [&](const Inputs& inputs, const Access& access, auto unmasked) {
        const uint64_t index = DROPOUT ? reduction.layout.index(access.at) : 0;
#pragma unroll
        for (int i = 0; i < SIZE; ++i) {
          if (!unmasked.value && i >= access.count) continue;
          Channel<T> channel = channels[i].channel;
          const T keep = draw_slope_and_keep<SLOPE, DROPOUT>(draw, vectors.draws_slope,
                                                             index + i * reduction.layout.index_step(), channel.slope);
          const T value = widen(inputs.z.at[i]), residual_value = widen(inputs.residual.at[i]);
          const Gradient<T> element = gradient<T, SLOPE, RESIDUAL, DROPOUT>(widen(inputs.dy.at[i]), value, channel,
                                                                            vectors.draws_slope, residual_value, keep);
          own[i].combine({element.du, multiply(element.du, value - channels[i].mean), element.dslope});
        }
      });
  store_partial(reduction, own, table, partial);
}

// Writes (3, channels): the first two rows are divided by `count`, the second is zero without BatchNorm, the third
// unless the slope is a tensor. Writes the sums to those of the gradients that exist.
template <class T>
struct Finish {
  T* rows;
  int64_t channels;
  ChannelVectors vectors;
  bool with_slope;
  T count;
  VectorGradients gradients;

  __device__ void operator()(int64_t channel, const Sums<T>& total) const {
    const T weighted = vectors.mean.data ? multiply(total.weighted, vectors.factor<T>(channel)) : T(0);
    const T slope = with_slope ? total.slope : T(0);
    rows[channel] = total.du / count;
    rows[channels + channel] = weighted / count;
    rows[2 * channels + channel] = slope;
    gradients.beta.write(channel, total.du);
    gradients.gamma.write(channel, weighted);
    gradients.slope.write(channel, slope);
  }
};

template <class S>
void launch_reduce(const Epilogue& arguments, const Tensor& grad, const S* z, const Layout& layout, Tensor& result,
                   int64_t count, const VectorGradients& gradients, const Device& device) {
  using T = Wide<S>;
  constexpr int SIZE = AlignedVector<S>::SIZE;
  const bool before = arguments.place() == Residual::before;
  const S* residual = before ? arguments.residual_data<S>() : nullptr;
  const S* dy = static_cast<const S*>(grad.const_data_ptr());
  const Reduction reduction(layout, SIZE, aligned(z, residual, dy));
  const Tensor workspace = new_vector(result, 3 * reduction.parts * layout.channels, wide_type(result));
  auto* partial = reinterpret_cast<Sums<T>*>(workspace.mutable_data_ptr());
  const ChannelVectors vectors = vectors_of(arguments);
  const auto launch_kernel = [&](auto kind, auto place) {
    launch("_epilogue_reduce", reduce_kernel<S, kind.slope, place.value, kind.dropout>, reduction.blocks(SIZE), THREADS,
           device, dy, z, residual, partial, reduction, vectors);
  };
  with_kind(arguments.slope_kind, arguments.dropout > 0,
            [&](auto kind) { with_place_before(before, [&](auto place) { launch_kernel(kind, place); }); });
  const Finish<T> finish{result.mutable_data_ptr<T>(),          layout.channels, vectors,
                         arguments.slope_kind == Slope::tensor, T(count),        gradients};
  launch("_epilogue_reduce", finish_kernel<Sums<T>, Finish<T>>, dim3(unsigned(layout.channels)), FINISH_THREADS, device,
         partial, reduction.parts, finish);
}

}  // namespace

Tensor reduce_pass(const Epilogue& arguments, const Tensor& grad, const Tensor& z, Order order, int64_t count,
                   const VectorGradients& gradients, const Device& device) {
  Tensor result = torch::stable::new_empty(z, Sizes{3, z.size(1)}, wide_type(z));
  with_storage(
      z, [&](auto* data) { launch_reduce(arguments, grad, data, Layout(z, order), result, count, gradients, device); });
  return result;
}

Tensor epilogue_reduce(Epilogue& arguments, Tensor& grad, const Tensor& z) {
  const Order order = fit_gradient(arguments, grad, z);
  const Device device("z", z);
  device.check("grad", grad);
  device.check(arguments);
  if (z.numel() == 0) return torch::stable::new_zeros(z, Sizes{3, z.size(1)}, wide_type(z));
  return reduce_pass(arguments, grad, z, order, 1, {}, device);
}

STABLE_TORCH_LIBRARY_IMPL(ATROUS_LIBRARY, ATROUS_CUDA_KEY, m) {
  m.impl("_epilogue_reduce", &OpAdapter<&epilogue_reduce>::call);
}

}  // namespace atrous::cuda
