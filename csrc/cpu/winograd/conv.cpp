// _winograd_epilogue: a 3x3 convolution of stride 1 and any dilation on channels_last tensors, with the epilogue
// applied to each output while it is in the cache.
//
// A work item is a block of tiles and a range of output channels. It transforms the block's input (V), multiplies it
// with the weight for a few panels of 16 output channels at a time, position by position (M stays in L2), and
// transforms the result back. V may be larger than L2, but one position of it is not, and all of the few panels use
// that position before the next one is read.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>

#include "../../convolution.h"
#include "../../op_adapter.h"
#include "../channels.h"
#include "../conv.h"
#include "../epilogue_loop.h"
#include "multiply.h"
#include "plan.h"
#include "transform.h"

namespace atrous::cpu {

namespace {

using namespace winograd;

template <class S>
struct Task {
  const Geometry& shape;
  const S *input, *residual;
  const float* transformed;
  S* output;
  Slope slope;
  Residual place;
  bool dropout;
  const Channels<float>& vectors;
  std::atomic<bool>& nan;  // set if a z is NaN
};

// A thread's buffers, reused from call to call.
struct Workspace {
  std::vector<float> v, m, zeros;
  std::vector<Tile> tiles;
};

template <class T>
T* reserve(std::vector<T>& values, int64_t size) {
  if (int64_t(values.size()) < size) values.resize(size);
  return values.data();
}

// Writes v[position][tile][channel] of the tile whose first output is at (top, left).
template <class S>
void transform_tile(const Task<S>& task, int64_t image, int64_t top, int64_t left, const S* zeros, float* v,
                    int64_t step) {
  const Geometry& shape = task.shape;
  const S* pixels[POSITIONS];
  for (int i = 0; i < 4; ++i) {
    const int64_t y = top - shape.padding[0] + i * shape.dilation[0];
    for (int j = 0; j < 4; ++j) {
      const int64_t x = left - shape.padding[1] + j * shape.dilation[1];
      const bool inside = y >= 0 && y < shape.height && x >= 0 && x < shape.width;
      const int64_t pixel = (image * shape.height + y) * shape.width + x;
      pixels[4 * i + j] = inside ? task.input + pixel * shape.in_channels : zeros;
    }
  }
  int64_t channel = 0;
  for (; channel + LANES <= shape.in_channels; channel += LANES) transform_input(pixels, channel, v + channel, step);
  if (channel == shape.in_channels) return;
  S rest[POSITIONS][LANES] = {};
  for (int i = 0; i < POSITIONS; ++i) {
    std::copy(pixels[i] + channel, pixels[i] + shape.in_channels, rest[i]);
    pixels[i] = rest[i];
  }
  transform_input(pixels, 0, v + channel, step);
}

template <class S>
void load_block(const Task<S>& task, int64_t first, int64_t last, Workspace& space) {
  const Geometry& shape = task.shape;
  const int64_t stride = shape.tile_step(), step = (last - first) * stride;
  const int64_t columns = shape.lefts.size(), rows = shape.tops.size();
  const S* zeros = reinterpret_cast<const S*>(reserve(space.zeros, stride));
  float* v = reserve(space.v, POSITIONS * step);
  space.tiles.clear();
  for (int64_t tile = first; tile < last; ++tile, v += stride) {
    const int64_t image = tile / columns / rows, top = shape.tops[tile / columns % rows],
                  left = shape.lefts[tile % columns];
    space.tiles.push_back(tile_at(shape, image, top, left));
    transform_tile(task, image, top, left, zeros, v, step);
  }
}

// Writes the outputs of one tile, 16 channels from `channel`, through the epilogue.
template <class SlopeKind, class Place, class Dropout, class S>
void finish_tile(const Task<S>& task, const Tile& tile, const float* m, int64_t step, int64_t channel, SlopeKind, Place,
                 Dropout) {
  float z[4 * PANEL];
  for (int64_t half = 0; half < PANEL; half += LANES) transform_output(m + half, step, z + half);
  if (has_nan(z, 4 * PANEL / LANES)) task.nan.store(true, std::memory_order_relaxed);
  const int64_t channels = task.shape.out_channels, count = std::min(PANEL, channels - channel);
  const int64_t area = task.shape.out_height * task.shape.out_width;
  for (int i = 0; i < 4; ++i) {
    if (tile.pixels[i] < 0) continue;
    const int64_t at = tile.pixels[i] * channels + channel;
    const int64_t index = (tile.image * channels + channel - tile.image) * area + tile.pixels[i];
    EpilogueLoop<S, float> loop{z + i * PANEL,
                                task.residual + at,
                                task.output + at,
                                count,
                                &task.vectors.scale[channel],
                                &task.vectors.shift[channel],
                                &task.vectors.slope[channel],
                                uint64_t(index),
                                uint64_t(area)};
    if (count < PANEL) {
      epilogue_loop<SlopeKind::value, Place::value, Dropout::value, true>(loop, task.vectors.draw);
    } else {
      loop.length = PANEL;  // a constant: the loop is unrolled
      epilogue_loop<SlopeKind::value, Place::value, Dropout::value, true>(loop, task.vectors.draw);
    }
  }
}

// Finishes one panel of all tiles; position p of M is at m + p * step.
template <class S>
void finish_panel(const Task<S>& task, const Workspace& space, int64_t panel, const float* m, int64_t step) {
  select(task.slope, task.place, task.dropout, [&](auto slope, auto place, auto dropout) {
    for (const Tile& tile : space.tiles) {
      finish_tile(task, tile, m, step, panel * PANEL, slope, place, dropout);
      m += PANEL;
    }
  });
}

// Prefetches part `part` of 16 of the memory that finish_panel reads and writes.
template <class S>
void prefetch_panel(const Task<S>& task, const Workspace& space, int64_t panel, int64_t part) {
  const int64_t tiles = space.tiles.size();
  for (int64_t i = tiles * part / POSITIONS; i < tiles * (part + 1) / POSITIONS; ++i)
    for (const int64_t pixel : space.tiles[i].pixels) {
      if (pixel < 0) continue;
      const int64_t at = pixel * task.shape.out_channels + panel * PANEL;
      __builtin_prefetch(task.output + at, 1, 2);
      if (task.residual) __builtin_prefetch(task.residual + at, 0, 2);
    }
}

// The input transform and the epilogue of a block, compiled for each instruction set and storage type.
#define ATROUS_LOAD_AND_FINISH(S)                                                                             \
  ATROUS_CLONES void load_tiles(const Task<S>& task, int64_t first, int64_t last, Workspace& space) {         \
    load_block(task, first, last, space);                                                                     \
  }                                                                                                           \
  ATROUS_CLONES void finish_tiles(const Task<S>& task, const Workspace& space, int64_t panel, const float* m, \
                                  int64_t step) {                                                             \
    finish_panel(task, space, panel, m, step);                                                                \
  }
ATROUS_LOAD_AND_FINISH(float)
ATROUS_LOAD_AND_FINISH(Half)
ATROUS_LOAD_AND_FINISH(BFloat16)

// Computes `panels` panels from `panel` on, of a block whose input is already transformed.
template <class S>
void compute_panels(const Task<S>& task, Workspace& space, int64_t panel, int64_t panels) {
  const Geometry& shape = task.shape;
  const int64_t tiles = space.tiles.size(), weights = shape.in_channels * PANEL, step = panels * tiles * PANEL;
  float* m = reserve(space.m, POSITIONS * step);
  const float* u = task.transformed + panel * POSITIONS * weights;
  for (int64_t position = 0; position < POSITIONS; ++position) {
    for (int64_t i = 0; i < panels; ++i) prefetch_panel(task, space, panel + i, position);
    multiply({space.v.data() + position * tiles * shape.tile_step(), u + position * weights, m + position * step, tiles,
              shape.in_channels, panels, shape.tile_step(), POSITIONS * weights});
  }
  for (int64_t i = 0; i < panels; ++i) finish_tiles(task, space, panel + i, m + i * tiles * PANEL, step);
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

// The weight that `transformed` was computed from, in the dtype of the input and channels_last.
Tensor recover(const Tensor& transformed, const Tensor& input, const Geometry& shape) {
  const int64_t channels = shape.in_channels, step = channels * PANEL;
  Tensor weight = empty_tensor(input, {shape.out_channels, channels, 3, 3}, Order::channels_last);
  with_storage(input, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const float* all = transformed.const_data_ptr<float>();
    S* taps = static_cast<S*>(weight.mutable_data_ptr());
    for (int64_t k = 0; k < shape.out_channels; ++k)
      for (int64_t c = 0; c < channels; ++c) {
        float u[POSITIONS], g[9];
        for (int64_t i = 0; i < POSITIONS; ++i)
          u[i] = all[k / PANEL * POSITIONS * step + i * step + c * PANEL + k % PANEL];
        recover_weight(u, g);
        for (int64_t i = 0; i < 9; ++i) taps[(k * 9 + i) * channels + c] = narrow<S>(g[i]);
      }
  });
  return weight;
}

}  // namespace

Tensor winograd_epilogue(Epilogue& arguments, Tensor& input, const Tensor& transformed, int64_t out_channels,
                         const OptionalTensor& bias, const Sizes& padding, const Sizes& dilation) {
  const Geometry shape = geometry(input, out_channels, padding, dilation);
  check_weight(transformed, shape);
  if (!is_dense(input.sizes(), input.strides(), Order::channels_last))
    input = torch::stable::contiguous(input, memory_format(Order::channels_last));
  const Sizes sizes{shape.images, out_channels, shape.out_height, shape.out_width};
  check_vector("bias", bias, out_channels);
  arguments.fit(sizes, strides_of(sizes, Order::channels_last), input.scalar_type());
  Tensor output = empty_tensor(input, sizes, Order::channels_last);
  if (output.numel() == 0) return output;
  const Channels<float> vectors(arguments, out_channels, bias, shape.panels() * PANEL);
  std::atomic<bool> nan = false;
  with_storage(input, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    if constexpr (!std::is_same_v<S, double>)
      convolve(Task<S>{shape, data, arguments.residual_data<S>(), transformed.const_data_ptr<float>(),
                       static_cast<S*>(output.mutable_data_ptr()), arguments.slope_kind, arguments.place(),
                       arguments.dropout > 0, vectors, nan});
  });
  // B' d B spreads an infinity to outputs that do not depend on it, as NaN
  if (nan)
    return conv_epilogue(arguments, input, recover(transformed, input, shape), bias, {1, 1}, padding, dilation, 1);
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_winograd_epilogue", &OpAdapter<&winograd_epilogue>::call); }

}  // namespace atrous::cpu
