// _epilogue_reduce: the sums for dbeta, dgamma and dslope of each channel.
#include <torch/csrc/stable/ops.h>

#include "device.h"
#include "elements.cuh"
#include "kernel_args.h"
#include "primitives.h"
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

// Two blocks' threads with a pack of three maps or two packs of two in flight hide the memory's latency, in 128
// registers beside the channels' values. What is drawn is bound by the generator: one pack, and the registers that it
// wants.
template <Residual RESIDUAL, bool DROPOUT>
constexpr int TOGETHER = DROPOUT || RESIDUAL != Residual::none ? 1 : 2;

template <class S, Slope SLOPE, Residual RESIDUAL, bool DROPOUT>
__global__ void __launch_bounds__(THREADS, DROPOUT ? 1 : 2)
    reduce_kernel(const S* __restrict__ grad, const S* __restrict__ z, const S* __restrict__ residual,
                  Sums<Wide<S>>* __restrict__ partial, Reduction reduction, Vectors vectors) {
  using T = Wide<S>;
  constexpr int SIZE = Pack<S>::SIZE;
  __shared__ Sums<T> table[THREADS * SIZE];
  __shared__ CentredChannel<T> read[COLUMNS * SIZE];
  CentredChannel<T> channels[SIZE];
  reduction.read_channels<SIZE>(read, channels, [&](int64_t channel) {
    return CentredChannel<T>{vectors.at<T>(channel), vectors.mean.read(channel, T(0))};
  });
  const Draw<T> draw = vectors.draw<T>();
  Sums<T> own[SIZE] = {};
  struct Packs {
    Pack<S> dy, z, residual;
  };
  const auto load_packs = [&](const Place& place, auto whole) {
    const auto pack = [&](const S* of) { return load(of + place.at, place.count, whole); };
    Packs packs{pack(grad), pack(z), {}};
    if (RESIDUAL != Residual::none) packs.residual = pack(residual);
    return packs;
  };
  reduction.walk<SIZE, TOGETHER<RESIDUAL, DROPOUT>>(
      load_packs, [&](const Packs& packs, const Place& place, auto whole) {
        const uint64_t index = DROPOUT ? reduction.layout.index(place.at) : 0;
#pragma unroll
        for (int i = 0; i < SIZE; ++i) {
          if (!whole.value && i >= place.count) continue;
          Channel<T> channel = channels[i].channel;
          const T keep = drawn<SLOPE, DROPOUT>(draw, vectors.draws_slope, index + i * reduction.layout.index_step(),
                                               channel.slope);
          const T value = widen(packs.z.at[i]), residual_value = widen(packs.residual.at[i]);
          const Gradient<T> of =
              gradient<T, SLOPE, RESIDUAL, DROPOUT>(widen(packs.dy.at[i]), value, channel, residual_value, keep);
          own[i].combine({of.du, multiply(of.du, value - channels[i].mean), of.of_slope});
        }
      });
  leave(reduction, own, table, partial);
}

// (3, channels); without BatchNorm the second is zero, without a slope a channel the third.
template <class T>
struct Finish {
  T* sums;
  int64_t channels;
  Vectors vectors;
  bool with_slope;

  __device__ void operator()(int64_t channel, const Sums<T>& of) const {
    sums[channel] = of.du;
    sums[channels + channel] = vectors.mean.data ? multiply(of.weighted, vectors.factor<T>(channel)) : T(0);
    sums[2 * channels + channel] = with_slope ? of.slope : T(0);
  }
};

template <class S>
void run(const Arguments& arguments, const Tensor& grad, const S* z, const Layout& layout, Tensor& result,
         const Device& device) {
  using T = Wide<S>;
  constexpr int SIZE = Pack<S>::SIZE;
  const bool before = arguments.place() == Residual::before;
  const S* residual = before ? static_cast<const S*>(arguments.residual->const_data_ptr()) : nullptr;
  const S* dy = static_cast<const S*>(grad.const_data_ptr());
  const Reduction reduction(layout, SIZE, aligned(z, residual, dy));
  const Tensor workspace = torch::stable::new_empty(result, Sizes{3 * reduction.parts * layout.channels});
  auto* partial = reinterpret_cast<Sums<T>*>(workspace.mutable_data_ptr());
  const Vectors vectors = vectors_of(arguments);
  const auto start = [&](auto kind, auto place) {
    launch("_epilogue_reduce", reduce_kernel<S, kind.slope, place.value, kind.dropout>, reduction.blocks(SIZE), THREADS,
           device, dy, z, residual, partial, reduction, vectors);
  };
  with_kind(arguments.kind(), arguments.dropout > 0,
            [&](auto kind) { with_place_before(before, [&](auto place) { start(kind, place); }); });
  const Finish<T> finish{result.mutable_data_ptr<T>(), layout.channels, vectors, arguments.kind() == Slope::tensor};
  launch("_epilogue_reduce", finish_kernel<Sums<T>, Finish<T>>, dim3(unsigned(layout.channels)), FINISHERS, device,
         partial, reduction.parts, finish);
}

}  // namespace

Tensor epilogue_reduce(const Arguments& arguments, const Tensor& grad, const Tensor& z) {
  const Order order = check_gradient(arguments, grad, z);
  const Device device("z", z);
  device.check("grad", grad);
  device.check(arguments);
  const Sizes shape{3, z.size(1)};
  if (z.numel() == 0) return torch::stable::new_zeros(z, shape, wide_type(z));
  Tensor result = torch::stable::new_empty(z, shape, wide_type(z));
  with_storage(z, [&](auto* data) { run(arguments, grad, data, Layout(z, order), result, device); });
  return result;
}

}  // namespace atrous::cuda
