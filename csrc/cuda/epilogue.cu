// _epilogue: y = (act(z * scale + shift (+ residual)) (+ residual)) (* keep) over dense tensors.
#include <torch/csrc/stable/ops.h>

#include "../kernel_args.h"
#include "device.h"
#include "elements.cuh"
#include "elementwise.cuh"
#include "ops.h"
#include "static_switch.h"

namespace atrous::cuda {

namespace {

template <class S, Slope SLOPE, Residual RESIDUAL, bool DROPOUT>
__global__ void __launch_bounds__(THREADS, 2)
    epilogue_kernel(const S* __restrict__ z, const S* __restrict__ residual, S* __restrict__ y,
                    ElementwiseTiling tiling, ChannelVectors vectors) {
  using T = Wide<S>;
  constexpr int SIZE = AlignedVector<S>::SIZE;
  __shared__ Channel<T> table[LANES * SIZE];
  Channel<T> channels[SIZE];
  read_channels<SIZE>(tiling, table, channels, [&](int64_t channel) { return vectors.at<T>(channel); });
  const int64_t column = tiling.column(SIZE);
  if (column >= tiling.cols) return;
  const int count = int(min(tiling.cols - column, int64_t(SIZE)));
  const Draw<T> draw = vectors.draw<T>();
  tiling.for_each_vector(column, [&](int64_t at, auto unmasked) {
    AlignedVector<S> values = load(z + at, count, unmasked), others{};
    if (RESIDUAL != Residual::none) others = load(residual + at, count, unmasked);
    const uint64_t index = DROPOUT ? tiling.layout.index(at) : 0;
#pragma unroll
    for (int i = 0; i < SIZE; ++i) {
      T slope = channels[i].slope;
      const T keep =
          draw_slope_and_keep<SLOPE, DROPOUT>(draw, vectors.draws_slope, index + i * tiling.layout.index_step(), slope);
      values.at[i] = narrow<S>(atrous::epilogue<T, SLOPE, RESIDUAL, DROPOUT>(widen(values.at[i]), channels[i].affine,
                                                                             slope, widen(others.at[i]), keep));
    }
    store(y + at, values, count, unmasked);
  });
}

template <class S>
void launch_epilogue(const Epilogue& arguments, const S* z, const Tensor& y, const Layout& layout,
                     const Device& device) {
  constexpr int SIZE = AlignedVector<S>::SIZE;
  const S* residual = arguments.residual_data<S>();
  S* result = static_cast<S*>(y.mutable_data_ptr());
  const ElementwiseTiling tiling(layout, SIZE, aligned(z, residual, result));
  const auto launch_kernel = [&](auto kind, auto place) {
    launch("_epilogue", epilogue_kernel<S, kind.slope, place.value, kind.dropout>, tiling.blocks(SIZE), THREADS, device,
           z, residual, result, tiling, vectors_of(arguments));
  };
  with_kind(arguments.slope_kind, arguments.dropout > 0,
            [&](auto kind) { with_place(arguments.place(), [&](auto place) { launch_kernel(kind, place); }); });
}

}  // namespace

Tensor epilogue(Epilogue& arguments, const Tensor& z) {
  const Order order = check_dense("z", z);
  arguments.fit(z.sizes(), z.strides(), z.scalar_type());
  const Device device("z", z);
  device.check(arguments);
  Tensor y = new_like(z);
  if (z.numel()) with_storage(z, [&](auto* data) { launch_epilogue(arguments, data, y, Layout(z, order), device); });
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(ATROUS_LIBRARY, ATROUS_CUDA_KEY, m) {
  m.impl("_epilogue", &OpAdapter<&epilogue>::call);
  m.impl("_epilogue_again", &OpAdapter<&epilogue>::call);
}

}  // namespace atrous::cuda
