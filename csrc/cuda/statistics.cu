// _statistics: mean and biased variance of each channel. _statistics_epilogue: the epilogue with these.
//
// A thread sums the deviations from its first value and their squares, so that no mean is ever squared. Means are
// stored relative to the first value of their channel, so that a large mean costs no digits. Threads are combined by
// Chan's formula. Source: Chan, Golub, LeVeque: Algorithms for computing the sample variance (The American Statistician
// 37, 1983).
#include <torch/csrc/stable/ops.h>

#include "../statistics_epilogue.h"
#include "device.h"
#include "ops.h"
#include "reduction.cuh"

namespace atrous::cuda {

namespace {

template <class T>
struct Moments {
  T count, mean, m2;

  __device__ void combine(const Moments& other) {
    if (other.count == 0) return;
    const T total = count + other.count, fraction = other.count / total, difference = other.mean - mean;
    mean = std::fma(difference, fraction, mean);
    m2 += std::fma(multiply(difference, difference), multiply(count, fraction), other.m2);
    count = total;
  }
};

template <class T>
struct Deviations {
  T pivot, sum, squares;
  int count;

  __device__ void add(T value) {
    const T deviation = value - pivot;
    sum += deviation;
    squares = std::fma(deviation, deviation, squares);
    ++count;
  }
  __device__ Moments<T> moments(T origin) const {
    if (count == 0) return {};
    const T rest = squares - multiply(sum, sum / count);
    return {T(count), pivot - origin + sum / count, rest < 0 ? T(0) : rest};
  }
};

// The first value of a channel.
template <class S>
__device__ Wide<S> origin(const S* z, const Layout& layout, int64_t channel) {
  return widen(z[layout.channels_last ? channel : channel * layout.spatial]);
}

// Three blocks per multiprocessor with IN_FLIGHT vectors per thread hide the memory latency. With four in flight, bf16
// spills on sm_100.
constexpr int BLOCKS_PER_SM = 3, IN_FLIGHT = 2;

template <class S>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
    statistics_kernel(const S* __restrict__ z, Moments<Wide<S>>* __restrict__ partial, Reduction reduction) {
  using T = Wide<S>;
  constexpr int SIZE = AlignedVector<S>::SIZE;
  __shared__ Moments<T> table[THREADS * SIZE];
  const int64_t channel = reduction.channel(SIZE), channels = reduction.layout.channels;
  Deviations<T> own[SIZE] = {};
  // The pivots are the first vector. Elements that it lacks at a plane's end use its first, which has the same channel.
  if (channel < channels && reduction.item() < reduction.items) {
    const Access first = reduction.access<SIZE>(reduction.item());
    const AlignedVector<S> pivots = load(z + first.at, first.count, Masked{});
#pragma unroll
    for (int i = 0; i < SIZE; ++i) own[i].pivot = widen(i < first.count ? pivots.at[i] : pivots.at[0]);
  }
  const auto load_z = [&](const Access& access, auto unmasked) { return load(z + access.at, access.count, unmasked); };
  reduction.for_each_vector<SIZE, IN_FLIGHT>(load_z,
                                             [&](const AlignedVector<S>& values, const Access& access, auto unmasked) {
#pragma unroll
                                               for (int i = 0; i < SIZE; ++i)
                                                 if (unmasked.value || i < access.count)
                                                   own[i].add(widen(values.at[i]));
                                             });
  Moments<T> moments[SIZE] = {};
#pragma unroll
  for (int i = 0; i < SIZE; ++i) {
    const int64_t own_channel = reduction.channels_last() ? channel + i : channel;
    if (own_channel < channels) moments[i] = own[i].moments(origin(z, reduction.layout, own_channel));
  }
  store_partial(reduction, moments, table, partial);
}

template <class S>
struct Finish {
  using T = Wide<S>;
  const S* z;
  Layout layout;
  T *mean, *var;

  __device__ void operator()(int64_t channel, const Moments<T>& moments) const {
    mean[channel] = origin(z, layout, channel) + moments.mean;
    var[channel] = moments.m2 / moments.count;
  }
};

template <class S>
void launch_statistics(const S* z, const Tensor& model, const Layout& layout, Tensor& mean, Tensor& var,
                       const Device& device) {
  using T = Wide<S>;
  constexpr int SIZE = AlignedVector<S>::SIZE;
  const Reduction reduction(layout, SIZE, aligned(z));
  const Tensor workspace = new_vector(model, 3 * reduction.parts * layout.channels, wide_type(model));
  auto* partial = reinterpret_cast<Moments<T>*>(workspace.mutable_data_ptr());
  launch("_statistics", statistics_kernel<S>, reduction.blocks(SIZE), THREADS, device, z, partial, reduction);
  const Finish<S> finish{z, layout, mean.mutable_data_ptr<T>(), var.mutable_data_ptr<T>()};
  launch("_statistics", finish_kernel<Moments<T>, Finish<S>>, dim3(unsigned(layout.channels)), FINISH_THREADS, device,
         partial, reduction.parts, finish);
}

}  // namespace

std::tuple<Tensor, Tensor> statistics(const Tensor& z) {
  const Order order = check_dense("z", z);
  const Device device("z", z);
  Tensor mean = new_vector(z, z.size(1), wide_type(z)), var = new_vector(z, z.size(1), wide_type(z));
  if (z.numel()) {
    with_storage(z, [&](auto* data) { launch_statistics(data, z, Layout(z, order), mean, var, device); });
  } else {
    torch::stable::zero_(mean);
    torch::stable::zero_(var);
  }
  return {mean, var};
}

STABLE_TORCH_LIBRARY_IMPL(ATROUS_LIBRARY, ATROUS_CUDA_KEY, m) {
  m.impl("_statistics", TORCH_BOX(&statistics));
  m.impl("_statistics_epilogue", &OpAdapter<&statistics_epilogue<&statistics, &epilogue>>::call);
}

}  // namespace atrous::cuda
