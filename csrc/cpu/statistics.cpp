// _statistics: mean and biased variance of each channel. _statistics_epilogue: the epilogue with these.
//
// In each chunk a pivot is computed first, the mean or near it, then the sums of the deviations from it and of their
// squares. Chunks are combined by Chan's formula. No mean is ever squared.
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
  const int64_t full = count / L::size * L::size;
  L values{}, pivot{}, sum{}, squares{};
  T rest = 0, rest_squares = 0;
  for (int64_t i = 0; i < full; i += L::size) {
    values.load(z + i);
    sum.add(values);
  }
  for (int64_t i = full; i < count; ++i) rest += widen(z[i]);
  const T middle = (sum.total() + rest) / count;
  pivot.fill(middle);
  sum = {};
  for (int64_t i = 0; i < full; i += L::size) {
    values.load(z + i);
    for (int p = 0; p < 4; ++p) {
      const auto deviation = values.part[p] - pivot.part[p];
      sum.part[p] += deviation;
      squares.part[p] += deviation * deviation;
    }
  }
  rest = 0;
  for (int64_t i = full; i < count; ++i) {
    const T deviation = widen(z[i]) - middle;
    rest += deviation;
    rest_squares += deviation * deviation;
  }
  write(middle, sum.total() + rest, squares.total() + rest_squares, count, mean, m2);
}

// Row by row, since memory is read fastest in its order; the sums stay in the L1 cache. The pivot is the mean of the
// first rows alone, so that memory is read once. Where it is far from the mean, the variance is large as well:
// (pivot - mean)**2 is at most rows / PIVOT_ROWS variances, and the subtraction in write() loses four bits at most.
template <class S>
void moments_of_columns(const S* z, const Chunk& chunk, double* mean, double* m2) {
  using T = Wide<S>;
  constexpr int64_t PIVOT_ROWS = 16, LINE = 64 / sizeof(S), AHEAD = 8;  // AHEAD: rows that are fetched in advance
  const int64_t first = std::min(PIVOT_ROWS, chunk.rows);
  T pivot[MAX_CHANNELS] = {}, sum[MAX_CHANNELS] = {}, squares[MAX_CHANNELS] = {};
  for (int64_t row = 0; row < first; ++row) {
    const S* values = z + row * chunk.stride;
    for (int64_t i = 0; i < chunk.length; ++i) pivot[i] += widen(values[i]);
  }
  for (int64_t i = 0; i < chunk.length; ++i) {
    pivot[i] /= T(first);
    if (!std::isfinite(pivot[i])) pivot[i] = 0;  // the other rows may have the opposite infinity
  }
  for (int64_t row = 0; row < chunk.rows; ++row) {
    const S* values = z + row * chunk.stride;
    for (int64_t i = 0; i < chunk.length; i += LINE) __builtin_prefetch(values + AHEAD * chunk.stride + i);
    for (int64_t i = 0; i < chunk.length; ++i) {
      const T deviation = widen(values[i]) - pivot[i];
      sum[i] += deviation;
      squares[i] += deviation * deviation;
    }
  }
  for (int64_t i = 0; i < chunk.length; ++i) write(pivot[i], sum[i], squares[i], chunk.rows, mean + i, m2 + i);
}

template <class S>
void moments_of_chunk(const S* z, const Chunk& chunk, bool channels_last, double* mean, double* m2) {
  if (channels_last) return moments_of_columns(z, chunk, mean, m2);
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

// The means of `channels` sets of `count` values, and the sums of their squared deviations from these.
struct Moments {
  double *mean, *m2, count;
};

// Adds the values of `other` to those of `all`.
void merge(Moments& all, const Moments& other, int64_t channels) {
  const double fraction = other.count / (all.count + other.count);
  ATROUS_INDEPENDENT
  for (int64_t i = 0; i < channels; ++i) {
    const double difference = other.mean[i] - all.mean[i];
    all.mean[i] += std::isfinite(difference) ? difference * fraction : other.mean[i];
    all.m2[i] += other.m2[i] + difference * difference * (all.count * fraction);
  }
  all.count += other.count;
}

// Combines the moments of all slots and repeats, [slot][2][repeat][channel], into mean and variance of each channel.
ATROUS_CLONES void combine(const WorkPartition& partition, const Layout& layout, double* moments) {
  const int64_t row = layout.channels, own = layout.own_channels();
  const auto of_slot = [&](int64_t slot) {
    double* mean = moments + 2 * slot * row;
    return Moments{mean, mean + row, double(partition.count(slot))};
  };
  Moments all = of_slot(0);
  for (int64_t slot = 1; slot < partition.slots(); ++slot) merge(all, of_slot(slot), row);
  const double count = all.count;
  for (int64_t at = own; at < row; at += own) merge(all, {all.mean + at, all.m2 + at, count}, own);
  for (int64_t i = 0; i < own; ++i) all.m2[i] /= all.count;
}

template <class S>
void statistics_into(const S* z, const Layout& rows, Tensor& mean, Tensor& var) {
  using T = Wide<S>;
  const Layout layout = rows.with_long_rows();
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
  combine(partition, layout, all.data());
  std::copy_n(all.data(), rows.channels, mean.mutable_data_ptr<T>());
  std::copy_n(all.data() + channels, rows.channels, var.mutable_data_ptr<T>());
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
