// _epilogue: y = (act(z * scale + shift (+ residual)) (+ residual)) (* keep) over dense tensors.
#include <torch/csrc/stable/ops.h>

#include "device.h"
#include "elements.cuh"
#include "elementwise.cuh"
#include "kernel_args.h"
#include "primitives.h"
#include "static_switch.h"

namespace atrous::cuda {

namespace {

template <class S, Slope SLOPE, Residual RESIDUAL, bool DROPOUT>
__global__ void __launch_bounds__(THREADS, 2) epilogue_kernel(const S* __restrict__ z, const S* __restrict__ residual,
                                                              S* __restrict__ y, Walk walk, Vectors vectors) {
  using T = Wide<S>;
  constexpr int SIZE = Pack<S>::SIZE;
  __shared__ Channel<T> table[LANES * SIZE];
  Channel<T> channels[SIZE];
  read_channels<SIZE>(walk, table, channels, [&](int64_t channel) { return vectors.at<T>(channel); });
  const int64_t column = walk.column(SIZE);
  if (column >= walk.cols) return;
  const int count = int(min(walk.cols - column, int64_t(SIZE)));
  const Draw<T> draw = vectors.draw<T>();
  walk.each_row(column, [&](int64_t at, auto whole) {
    Pack<S> values = load(z + at, count, whole), others{};
    if (RESIDUAL != Residual::none) others = load(residual + at, count, whole);
    const uint64_t index = DROPOUT ? walk.layout.index(at) : 0;
#pragma unroll
    for (int i = 0; i < SIZE; ++i) {
      T slope = channels[i].slope;
      const T keep = drawn<SLOPE, DROPOUT>(draw, vectors.draws_slope, index + i * walk.layout.index_step(), slope);
      values.at[i] = narrow<S>(atrous::epilogue<T, SLOPE, RESIDUAL, DROPOUT>(widen(values.at[i]), channels[i].affine,
                                                                             slope, widen(others.at[i]), keep));
    }
    store(y + at, values, count, whole);
  });
}

template <class S>
void run(const Arguments& arguments, const S* z, const Tensor& y, const Layout& layout, const Device& device) {
  constexpr int SIZE = Pack<S>::SIZE;
  const S* residual = arguments.residual ? static_cast<const S*>(arguments.residual->const_data_ptr()) : nullptr;
  S* result = static_cast<S*>(y.mutable_data_ptr());
  const Walk walk(layout, SIZE, aligned(z, residual, result));
  const auto start = [&](auto kind, auto place) {
    launch("_epilogue", epilogue_kernel<S, kind.slope, place.value, kind.dropout>, walk.blocks(SIZE), THREADS, device,
           z, residual, result, walk, vectors_of(arguments));
  };
  with_kind(arguments.kind(), arguments.dropout > 0,
            [&](auto kind) { with_place(arguments.place(), [&](auto place) { start(kind, place); }); });
}

}  // namespace

Tensor epilogue(const Arguments& arguments, const Tensor& z) {
  const Order order = check_dense("z", z);
  arguments.check(to_vector(z.sizes()), to_vector(z.strides()), z.scalar_type());
  const Device device("z", z);
  device.check(arguments);
  Tensor y = torch::stable::empty_like(z);
  if (z.numel()) with_storage(z, [&](auto* data) { run(arguments, data, y, Layout(z, order), device); });
  return y;
}

}  // namespace atrous::cuda
