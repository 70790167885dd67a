// _epilogue: y = act(z * scale + shift (+ residual)) (+ residual) over dense tensors, channels first or last.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "channels.h"
#include "primitives.h"
#include "row.h"

namespace atrous::cpu {

namespace {

constexpr int64_t GRAIN = 16384;  // elements: below this a second thread costs more than it brings

template <class S>
struct Job {
  const S *z, *residual;
  S* y;
  int64_t channels, spatial;
  bool channels_last;
  Slope slope;
  Residual place;
  const Channels<Wide<S>>& vectors;
};

// Elements begin .. end in memory order; a row has one channel (channels first) or all of one pixel (channels last).
template <bool CHANNELS_LAST, class S, class Variant, class Place>
void run_rows(const Job<S>& job, int64_t begin, int64_t end, Variant, Place) {
  const int64_t length = CHANNELS_LAST ? job.channels : job.spatial;
  int64_t row = begin / length, column = begin % length;
  for (int64_t at = begin; at < end; ++row, column = 0) {
    const int64_t count = std::min(length - column, end - at);
    const int64_t channel = CHANNELS_LAST ? column : row % job.channels;
    const int64_t image = CHANNELS_LAST ? row / job.spatial : 0;
    const int64_t index =
        CHANNELS_LAST ? (image * job.channels + channel) * job.spatial + (row - image * job.spatial) : at;
    run_row<Variant::value, Place::value, CHANNELS_LAST>(
        Row<S>{job.z + at, job.residual + at, job.y + at, count, &job.vectors.scale[channel],
               &job.vectors.shift[channel], &job.vectors.slope[channel], uint64_t(index),
               uint64_t(CHANNELS_LAST ? job.spatial : 1)},
        job.vectors.draw);
    at += count;
  }
}

template <class S>
void run(const Job<S>& job, int64_t begin, int64_t end) {
  select(job.slope, job.place, [&](auto slope, auto place) {
    if (job.channels_last)
      run_rows<true>(job, begin, end, slope, place);
    else
      run_rows<false>(job, begin, end, slope, place);
  });
}

ATROUS_CLONES void run_range(const Job<float>& job, int64_t begin, int64_t end) { run(job, begin, end); }
ATROUS_CLONES void run_range(const Job<double>& job, int64_t begin, int64_t end) { run(job, begin, end); }
ATROUS_CLONES void run_range(const Job<Half>& job, int64_t begin, int64_t end) { run(job, begin, end); }
ATROUS_CLONES void run_range(const Job<BFloat16>& job, int64_t begin, int64_t end) { run(job, begin, end); }

template <class S>
void launch(const Arguments& arguments, const S* z, const Tensor& y, Order order) {
  const int64_t channels = y.size(1), spatial = y.numel() / (y.size(0) * channels);
  const Channels<Wide<S>> vectors(arguments, channels);
  const S* residual = arguments.residual ? static_cast<const S*>(arguments.residual->const_data_ptr()) : nullptr;
  const bool channels_last = order == Order::channels_last || spatial == 1;  // the longer rows where both are true
  const Job<S> job{z,
                   residual,
                   static_cast<S*>(y.mutable_data_ptr()),
                   channels,
                   spatial,
                   channels_last,
                   arguments.kind(),
                   arguments.place(),
                   vectors};
  torch::stable::parallel_for(0, y.numel(), GRAIN, [&](int64_t begin, int64_t end) { run_range(job, begin, end); });
}

}  // namespace

void epilogue_into(const Arguments& arguments, const Tensor& z, const Tensor& y) {
  check_floating("z", z);
  const Sizes sizes = to_vector(z.sizes()), strides = to_vector(z.strides());
  STD_TORCH_CHECK(sizes.size() >= 2, "z: expected at least 2-D (N, C, ...), got shape ", to_string(sizes));
  const std::optional<Order> order = order_of(sizes, strides);
  STD_TORCH_CHECK(order, "z: expected contiguous or channels_last strides, got shape ", to_string(sizes), ", strides ",
                  to_string(strides));
  arguments.check(sizes, strides, z.scalar_type());
  if (z.numel() == 0) return;
  with_storage(z, [&](auto* data) { launch(arguments, data, y, *order); });
}

Tensor epilogue(const Arguments& arguments, const Tensor& z) {
  Tensor y = torch::stable::empty_like(z);
  epilogue_into(arguments, z, y);
  return y;
}

}  // namespace atrous::cpu
