// _epilogue: y = (act(z * scale + shift (+ residual)) (+ residual)) (* keep) over dense tensors, channels first or
// last.
#include <torch/csrc/stable/ops.h>

#include "channels.h"
#include "epilogue_loop.h"
#include "primitives.h"
#include "work_partition.h"

namespace atrous::cpu {

namespace {

template <class S>
struct Job {
  const S *z, *residual;
  S* y;
  const Layout& layout;
  Slope slope;
  Residual place;
  bool dropout;
  const Channels<Wide<S>>& vectors;
};

// Elements begin .. end in memory order; a row has one channel (channels first) or all of one pixel (channels last).
template <bool CHANNELS_LAST, class S, class Variant, class Place, class Dropout>
void run_rows(const Job<S>& job, int64_t begin, int64_t end, Variant, Place, Dropout) {
  const Layout& layout = job.layout;
  const int64_t length = CHANNELS_LAST ? layout.channels : layout.spatial;
  int64_t row = begin / length, column = begin % length;
  for (int64_t at = begin; at < end; ++row, column = 0) {
    const int64_t count = std::min(length - column, end - at);
    const int64_t channel = CHANNELS_LAST ? column : row % layout.channels;
    run_row<Variant::value, Place::value, Dropout::value, CHANNELS_LAST>(
        Row<S>{job.z + at, job.residual + at, job.y + at, count, &job.vectors.scale[channel],
               &job.vectors.shift[channel], &job.vectors.slope[channel], layout.index(at), layout.index_step()},
        job.vectors.draw);
    at += count;
  }
}

template <class S>
void run(const Job<S>& job, int64_t begin, int64_t end) {
  select(job.slope, job.place, job.dropout, [&](auto slope, auto place, auto dropout) {
    if (job.layout.channels_last)
      run_rows<true>(job, begin, end, slope, place, dropout);
    else
      run_rows<false>(job, begin, end, slope, place, dropout);
  });
}

ATROUS_CLONES void run_range(const Job<float>& job, int64_t begin, int64_t end) { run(job, begin, end); }
ATROUS_CLONES void run_range(const Job<double>& job, int64_t begin, int64_t end) { run(job, begin, end); }
ATROUS_CLONES void run_range(const Job<Half>& job, int64_t begin, int64_t end) { run(job, begin, end); }
ATROUS_CLONES void run_range(const Job<BFloat16>& job, int64_t begin, int64_t end) { run(job, begin, end); }

template <class S>
void launch(const Arguments& arguments, const S* z, const Tensor& y, Order order) {
  const Layout layout(y, order);
  const Channels<Wide<S>> vectors(arguments, layout.channels);
  const S* residual = arguments.residual ? static_cast<const S*>(arguments.residual->const_data_ptr()) : nullptr;
  const Job<S> job{z,
                   residual,
                   static_cast<S*>(y.mutable_data_ptr()),
                   layout,
                   arguments.kind(),
                   arguments.place(),
                   arguments.dropout > 0,
                   vectors};
  torch::stable::parallel_for(0, y.numel(), GRAIN, [&](int64_t begin, int64_t end) { run_range(job, begin, end); });
}

}  // namespace

void epilogue_into(const Arguments& arguments, const Tensor& z, const Tensor& y) {
  const Order order = check_dense("z", z);
  arguments.check(to_vector(z.sizes()), to_vector(z.strides()), z.scalar_type());
  if (z.numel() == 0) return;
  with_storage(z, [&](auto* data) { launch(arguments, data, y, order); });
}

Tensor epilogue(const Arguments& arguments, const Tensor& z) {
  Tensor y = torch::stable::empty_like(z);
  epilogue_into(arguments, z, y);
  return y;
}

}  // namespace atrous::cpu
