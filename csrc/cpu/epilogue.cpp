// _epilogue: y = (act(z * scale + shift (+ residual)) (+ residual)) (* keep) over dense tensors in either layout.
#include <torch/csrc/stable/ops.h>

#include "../op_adapter.h"
#include "channels.h"
#include "epilogue_into.h"
#include "epilogue_loop.h"
#include "work_partition.h"

namespace atrous::cpu {

namespace {

template <class S>
struct Task {
  const S *z, *residual;
  S* y;
  const Layout& layout;
  Slope slope;
  Residual place;
  bool dropout;
  const Channels<Wide<S>>& vectors;
};

// Computes elements begin .. end in memory order, row by row: a row is one channel of an image (channels first), or
// one pixel or, for an epilogue that does not draw, several (channels last).
template <bool CHANNELS_LAST, class S, class SlopeKind, class Place, class Dropout>
void epilogue_rows(const Task<S>& task, int64_t begin, int64_t end, SlopeKind, Place, Dropout) {
  const Layout& layout = task.layout;
  const int64_t length = CHANNELS_LAST ? layout.channels : layout.spatial;
  int64_t row = begin / length, column = begin % length;
  for (int64_t at = begin; at < end; ++row, column = 0) {
    const int64_t count = std::min(length - column, end - at);
    const int64_t channel = CHANNELS_LAST ? column : row % layout.channels;
    epilogue_loop<SlopeKind::value, Place::value, Dropout::value, CHANNELS_LAST>(
        EpilogueLoop<S>{task.z + at, task.residual + at, task.y + at, count, &task.vectors.scale[channel],
                        &task.vectors.shift[channel], &task.vectors.slope[channel], layout.index(at),
                        layout.index_step()},
        task.vectors.draw);
    at += count;
  }
}

template <class S>
void dispatch_epilogue(const Task<S>& task, int64_t begin, int64_t end) {
  select(task.slope, task.place, task.dropout, [&](auto slope, auto place, auto dropout) {
    if (task.layout.channels_last)
      epilogue_rows<true>(task, begin, end, slope, place, dropout);
    else
      epilogue_rows<false>(task, begin, end, slope, place, dropout);
  });
}

ATROUS_CLONES void epilogue_range(const Task<float>& task, int64_t begin, int64_t end) {
  dispatch_epilogue(task, begin, end);
}
ATROUS_CLONES void epilogue_range(const Task<double>& task, int64_t begin, int64_t end) {
  dispatch_epilogue(task, begin, end);
}
ATROUS_CLONES void epilogue_range(const Task<Half>& task, int64_t begin, int64_t end) {
  dispatch_epilogue(task, begin, end);
}
ATROUS_CLONES void epilogue_range(const Task<BFloat16>& task, int64_t begin, int64_t end) {
  dispatch_epilogue(task, begin, end);
}

template <class S>
void parallel_epilogue(const Epilogue& arguments, const S* z, const Tensor& y, Order order) {
  const Layout layout = loop_rows(arguments, Layout(y, order));
  const Channels<Wide<S>> vectors(arguments, layout);
  const Task<S> task{z,
                     arguments.residual_data<S>(),
                     static_cast<S*>(y.mutable_data_ptr()),
                     layout,
                     arguments.slope_kind,
                     arguments.place(),
                     arguments.dropout > 0,
                     vectors};
  torch::stable::parallel_for(0, y.numel(), GRAIN,
                              [&](int64_t begin, int64_t end) { epilogue_range(task, begin, end); });
}

}  // namespace

void epilogue_into(Epilogue& arguments, const Tensor& z, const Tensor& y) {
  const Order order = check_dense("z", z);
  arguments.fit(z.sizes(), z.strides(), z.scalar_type());
  if (z.numel() == 0) return;
  with_storage(z, [&](auto* data) { parallel_epilogue(arguments, data, y, order); });
}

Tensor epilogue(Epilogue& arguments, const Tensor& z) {
  Tensor y = new_like(z);
  epilogue_into(arguments, z, y);
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) {
  m.impl("_epilogue", &OpAdapter<&epilogue>::call);
  m.impl("_epilogue_again", &OpAdapter<&epilogue>::call);
}

}  // namespace atrous::cpu
