// _statistics: mean and biased variance of each channel. _statistics_epilogue: the epilogue with these.
//
// Each chunk's mean is computed first, then its squared deviations from that mean, both while the chunk is in the L1
// cache. Chunks are combined by Chan's formula. No mean is ever squared.
// Source: Chan, Golub, LeVeque: Algorithms for computing the sample variance (The American Statistician 37, 1983).
#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "../op_adapter.h"
#include "../statistics_epilogue.h"
#include "epilogue_into.h"
#include "lanes.h"
#include "work_partition.h"

namespace atrous::cpu {

namespace {

// The values of one channel (contiguous) or of one channel per lane (a row each): `full` vectors and then `partial`
// vectors of only `width` elements, `step` apart.
template <class S>
struct Strip {
  const S* z;
  int64_t step, full, partial, width;
};

// Calls function(values) for each vector of the strip; lanes beyond `width` are taken from `rest`.
template <class S, class Function>
void for_each_vector(const Strip<S>& strip, const Lanes<Wide<S>>& rest, Function&& function) {
  Lanes<Wide<S>> values{};
  for (int64_t i = 0; i < strip.full; ++i) {
    values.load(strip.z + i * strip.step);
    function(values);
  }
  for (int64_t i = strip.full; i < strip.full + strip.partial; ++i) {
    values.load(strip.z + i * strip.step, strip.width, rest);
    function(values);
  }
}

// The sums of the deviations from the pivot and of their squares; lanes that hold the pivot add nothing.
template <class S>
void deviations(const Strip<S>& strip, const Lanes<Wide<S>>& pivot, Lanes<Wide<S>>& sum, Lanes<Wide<S>>& squares) {
  sum = squares = {};
  for_each_vector(strip, pivot, [&](const auto& values) {
    for (int i = 0; i < 4; ++i) {
      const auto deviation = values.part[i] - pivot.part[i];
      sum.part[i] += deviation;
      squares.part[i] += deviation * deviation;
    }
  });
}

// The pivot is the rounded mean; `sum` corrects the rounding, but not that of an infinite mean.
void write(double pivot, double sum, double squares, int64_t count, double* mean, double* m2) {
  *mean = std::isfinite(pivot) ? pivot + sum / count : pivot;
  const double rest = squares - sum * sum / count;
  *m2 = rest < 0 ? 0 : rest;
}

// Values that do not fill the lanes are added one by one: for planes of 7 x 7 that is faster than padding.
template <class S>
void moments_of_row(const S* z, int64_t count, double* mean, double* m2) {
  using T = Wide<S>;
  using L = Lanes<T>;
  const Strip<S> strip{z, L::size, count / L::size, 0, 0};
  L pivot{}, sum{}, squares{};
  T rest = 0, rest_squares = 0;
  for_each_vector(strip, pivot, [&](const L& values) { sum.add(values); });
  for (int64_t i = strip.full * L::size; i < count; ++i) rest += widen(z[i]);
  const T middle = (sum.total() + rest) / count;
  pivot.fill(middle);
  deviations(strip, pivot, sum, squares);
  rest = 0;
  for (int64_t i = strip.full * L::size; i < count; ++i) {
    const T deviation = widen(z[i]) - middle;
    rest += deviation;
    rest_squares += deviation * deviation;
  }
  write(middle, sum.total() + rest, squares.total() + rest_squares, count, mean, m2);
}

template <class S>
void moments_of_columns(const S* z, int64_t rows, int64_t stride, int64_t width, double* mean, double* m2) {
  using T = Wide<S>;
  using L = Lanes<T>;
  const bool full = width == L::size;
  const Strip<S> strip{z, stride, full ? rows : 0, full ? 0 : rows, width};
  L pivot{}, sum{}, squares{};
  for_each_vector(strip, pivot, [&](const L& values) { sum.add(values); });
  for (int i = 0; i < 4; ++i) pivot.part[i] = sum.part[i] / T(rows);
  deviations(strip, pivot, sum, squares);
  T values[3][L::size];
  pivot.store(values[0]);
  sum.store(values[1]);
  squares.store(values[2]);
  for (int64_t i = 0; i < width; ++i) write(values[0][i], values[1][i], values[2][i], rows, mean + i, m2 + i);
}

template <class S>
void moments_of_chunk(const S* z, const Chunk& chunk, bool channels_last, double* mean, double* m2) {
  constexpr int64_t SIZE = Lanes<Wide<S>>::size;
  if (channels_last)
    for (int64_t i = 0; i < chunk.length; i += SIZE)
      moments_of_columns(z + i, chunk.rows, chunk.stride, std::min(SIZE, chunk.length - i), mean + i, m2 + i);
  else
    for (int64_t row = 0; row < chunk.rows; ++row)
      moments_of_row(z + row * chunk.stride, chunk.length, mean + row, m2 + row);
}

#define ATROUS_MOMENTS(S)                                                                                    \
  ATROUS_CLONES void moments(const S* z, const Chunk& chunk, bool channels_last, double* mean, double* m2) { \
    moments_of_chunk(z, chunk, channels_last, mean, m2);                                                     \
  }
ATROUS_MOMENTS(float)
ATROUS_MOMENTS(double)
ATROUS_MOMENTS(Half)
ATROUS_MOMENTS(BFloat16)

// Combines the moments of all slots, [slot][2][channel], into those of the first.
ATROUS_CLONES void combine(const WorkPartition& partition, int64_t channels, double* moments) {
  double *mean = moments, *m2 = moments + channels, count = partition.count(0);
  for (int64_t slot = 1; slot < partition.slots(); ++slot) {
    const double *other_mean = moments + 2 * slot * channels, *other_m2 = other_mean + channels;
    const double more = partition.count(slot), fraction = more / (count + more);
    ATROUS_INDEPENDENT
    for (int64_t i = 0; i < channels; ++i) {
      const double difference = other_mean[i] - mean[i];
      mean[i] += std::isfinite(difference) ? difference * fraction : other_mean[i];
      m2[i] += other_m2[i] + difference * difference * (count * fraction);
    }
    count += more;
  }
  for (int64_t i = 0; i < channels; ++i) m2[i] /= count;
}

template <class S>
void statistics_into(const S* z, const Layout& layout, Tensor& mean, Tensor& var) {
  using T = Wide<S>;
  const WorkPartition partition(layout);
  const int64_t channels = layout.channels;
  std::vector<double> all(2 * partition.slots() * channels);
  torch::stable::parallel_for(0, partition.size(), partition.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk chunk = partition[i];
      double* means = all.data() + 2 * partition.slot(i) * channels + chunk.channel;
      moments(z + chunk.at, chunk, layout.channels_last, means, means + channels);
    }
  });
  combine(partition, channels, all.data());
  std::copy_n(all.data(), channels, mean.mutable_data_ptr<T>());
  std::copy_n(all.data() + channels, channels, var.mutable_data_ptr<T>());
}

}  // namespace

std::tuple<Tensor, Tensor> statistics(const Tensor& z) {
  const Order order = check_dense("z", z);
  Tensor mean = new_vector(z, z.size(1), wide_type(z)), var = new_vector(z, z.size(1), wide_type(z));
  if (z.numel() == 0) {
    torch::stable::zero_(mean);
    torch::stable::zero_(var);
    return {mean, var};
  }
  with_storage(z, [&](auto* data) { statistics_into(data, Layout(z, order), mean, var); });
  return {mean, var};
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) {
  m.impl("_statistics", TORCH_BOX(&statistics));
  m.impl("_statistics_epilogue", &OpAdapter<&statistics_epilogue<&statistics, &epilogue>>::call);
}

}  // namespace atrous::cpu
