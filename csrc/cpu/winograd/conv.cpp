// _winograd_epilogue: a 3x3 convolution of stride 1 and any dilation on channels_last tensors, with the epilogue
// applied to each output while it is in the cache.
//
// A work item is a block of tiles and a range of output channels. It transforms the block's input (V), multiplies it
// with the weight for a few panels of 16 output channels at a time, position by position (M stays in L2), and
// transforms the result back. V may be larger than L2, but one position of it is not, and all of the few panels use
// that position before the next one is read.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "../../convolution.h"
#include "../../op_adapter.h"
#include "../conv.h"
#include "multiply.h"
#include "task.h"
#include "weight.h"

namespace atrous::cpu {

namespace {

using namespace winograd;

// Computes `panels` panels from `panel` on, of a block whose input is already transformed.
template <class S>
void compute_panels(const Task<S>& task, Workspace& space, int64_t panel, int64_t panels) {
  const Geometry& shape = task.shape;
  const int64_t positions = shape.tile.positions(), weights = shape.u_size();
  const int64_t tiles = space.tiles.size(), step = odd_lines(panels * tiles * PANEL);
  const int64_t v_step = odd_lines(tiles * shape.v_step());
  float* m = reserve(space.m, positions * step);
  const float* u = task.transformed + panel * positions * weights;
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t i = 0; i < panels; ++i) prefetch_panel(task, space, panel + i, position, positions);
    const PanelGemm gemm{space.v.data() + position * v_step,
                         u + position * weights,
                         m + position * step,
                         tiles,
                         shape.quantized ? shape.chunks() * CHUNK : shape.in_channels,
                         panels,
                         shape.v_step(),
                         positions * weights,
                         weights,
                         space.scales.data() + position * shape.chunks() * tiles};
    shape.quantized ? multiply_int16(gemm) : multiply(gemm);
  }
  for (int64_t i = 0; i < panels; ++i) finish_panel(task, space, panel + i, m + i * tiles * PANEL, step);
}

template <class S>
void convolve(const Task<S>& task) {
  const Blocking blocking = choose_blocking(task.shape, torch::stable::get_num_threads());
  const int64_t tiles = task.shape.tiles(), panels = task.shape.panels();
  torch::stable::parallel_for(0, blocking.blocks * blocking.splits, 1, [&](int64_t begin, int64_t end) {
    static thread_local Workspace space;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / blocking.splits, split = item % blocking.splits;
      load_tiles(task, tiles * block / blocking.blocks, tiles * (block + 1) / blocking.blocks, space);
      const int64_t last = panels * (split + 1) / blocking.splits;
      for (int64_t panel = panels * split / blocking.splits; panel < last; panel += blocking.panels)
        compute_panels(task, space, panel, std::min(blocking.panels, last - panel));
    }
  });
}

const float* own_weight(const Tensor& weight, bool turned, const Geometry& shape) {
  static thread_local std::vector<float> memory;
  const int64_t positions = shape.tile.positions();
  float* u = reserve(memory, shape.panels() * positions * shape.u_size());
  transform_weight(weight, turned, positions, shape.quantized, u);
  return u;
}

// The weight of the convolution that gives the gradient of the input: the kernel rotated by 180 degrees, input and
// output channels swapped.
Tensor turn(const Tensor& weight) {
  const Sizes sizes = to_vector(weight.sizes()), strides = to_vector(weight.strides());
  Tensor turned = empty_tensor(weight, {sizes[1], sizes[0], 3, 3}, Order::channels_last);
  with_storage(weight, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    S* taps = static_cast<S*>(turned.mutable_data_ptr());
    for (int64_t c = 0; c < sizes[1]; ++c)
      for (int64_t i = 8; i >= 0; --i)
        for (int64_t k = 0; k < sizes[0]; ++k)
          *taps++ = data[k * strides[0] + c * strides[1] + i / 3 * strides[2] + i % 3 * strides[3]];
  });
  return turned;
}

}  // namespace

// transformed: _winograd_weight(weight, turned, tile, int16), which is computed if it is absent. The weight itself is
// read if an output is not finite.
Tensor winograd_epilogue(Epilogue& arguments, Tensor& input, const Tensor& weight, const OptionalTensor& transformed,
                         bool turned, const Sizes& tile, bool int16, const OptionalTensor& bias, const Sizes& padding,
                         const Sizes& dilation) {
  const Geometry shape = geometry(input, weight, turned, check_tile(tile), int16, padding, dilation);
  if (transformed) check_transformed(*transformed, shape);
  if (!is_dense(input.sizes(), input.strides(), Order::channels_last))
    input = torch::stable::contiguous(input, memory_format(Order::channels_last));
  const Sizes sizes{shape.images, shape.out_channels, shape.out_height, shape.out_width};
  check_vector("bias", bias, shape.out_channels);
  arguments.fit(sizes, strides_of(sizes, Order::channels_last), input.scalar_type());
  Tensor output = empty_tensor(input, sizes, Order::channels_last);
  if (output.numel() == 0) return output;
  const float* u = transformed ? static_cast<const float*>(transformed->data_ptr()) : own_weight(weight, turned, shape);
  const Channels<float> vectors(arguments, shape.out_channels, bias, shape.panels() * PANEL);
  std::atomic<bool> special = false;
  with_storage(input, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    if constexpr (!std::is_same_v<S, double>)
      convolve(Task<S>{shape, data, arguments.residual_data<S>(), u, static_cast<S*>(output.mutable_data_ptr()),
                       arguments.slope_kind, arguments.place(), arguments.dropout > 0, vectors, special});
  });
  // B' d B spreads an infinity to outputs that do not depend on it, as NaN, and large inputs overflow earlier
  if (special)
    return conv_epilogue(arguments, input, turned ? turn(weight) : weight, bias, {1, 1}, padding, dilation, 1);
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_winograd_epilogue", &OpAdapter<&winograd_epilogue>::call); }

}  // namespace atrous::cpu
