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
#include "instruction_sets.h"
#include "load.h"
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
  std::atomic<bool>& special;  // set if a z is not finite
};

// A thread's buffers, reused from call to call.
struct Workspace {
  std::vector<float> v, m, zeros, scales;
  std::vector<Tile> tiles;
};

template <class T>
T* reserve(std::vector<T>& values, int64_t size) {
  if (int64_t(values.size()) < size) values.resize(size);
  return values.data();
}

// The inputs of a tile of M x N outputs.
template <int M, int N, class S>
void find_inputs(const Task<S>& task, const Tile& tile, const S* zeros, const S** pixels) {
  const Geometry& shape = task.shape;
  find_pixels<M + 2, N + 2>(Map<S>{task.input, shape.height, shape.width, shape.in_channels}, tile.image,
                            tile.top - shape.padding[0], tile.left - shape.padding[1], shape.dilation, zeros, pixels);
}

// Writes v[position][channel] of a tile of M x N outputs, and prefetches the inputs of the `next`.
template <int M, int N, class V, class S>
void load_tile(const S** pixels, const S** next, int64_t channels, float* v, int64_t step) {
  constexpr int LANES = sizeof(V) / sizeof(float), POSITIONS = (M + 2) * (N + 2);
  int64_t channel = 0;
  for (; channel + LANES <= channels; channel += LANES) {
    for (int i = 0; i < POSITIONS; ++i) __builtin_prefetch(next[i] + channel, 0, 3);
    transform_input<M, N, V>(pixels, channel, v + channel, step);
  }
  if (channel == channels) return;
  S rest[POSITIONS][LANES];
  pad_channels<LANES>(pixels, POSITIONS, channel, channels, rest);
  transform_input<M, N, V>(pixels, 0, v + channel, step);
}

// As load_tile, in int16; scales[position][chunk] get those of a tile.
template <int M, int N, class V, class S>
void load_tile_int16(const S** pixels, const S** next, const Geometry& shape, float* v, int64_t step, float* scales,
                     int64_t scale_step) {
  constexpr int LANES = sizeof(V) / sizeof(float), POSITIONS = (M + 2) * (N + 2);
  float values[POSITIONS * CHUNK];
  for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk) {
    const int64_t channel = chunk * CHUNK, count = std::min(CHUNK, shape.in_channels - channel);
    if (count < CHUNK) std::memset(values, 0, sizeof values);
    const S* inputs[POSITIONS];
    for (int i = 0; i < POSITIONS; ++i) {
      inputs[i] = pixels[i] + channel;
      __builtin_prefetch(next[i] + channel, 0, 3);
      if (sizeof(S) == 4) __builtin_prefetch(next[i] + channel + CHUNK / 2, 0, 3);
    }
    S rest[POSITIONS][CHUNK];
    if (count % LANES) pad_channels<CHUNK>(inputs, POSITIONS, 0, count, rest);
    for (int64_t c = 0; c < count; c += LANES) transform_input<M, N, V>(inputs, c, values + c, CHUNK);
    for (int i = 0; i < POSITIONS; ++i)
      scales[(i * shape.chunks() + chunk) * scale_step] =
          quantize(values + i * CHUNK, reinterpret_cast<int16_t*>(v + i * step) + channel);
  }
}

template <class V, class S>
void load_block(const Task<S>& task, Workspace& space, float* v) {
  const int64_t stride = task.shape.v_step(), tiles = space.tiles.size(), step = odd_lines(tiles * stride);
  const S* zeros = reinterpret_cast<const S*>(space.zeros.data());
  with_tile(task.shape.tile.positions(), [&](auto rows, auto columns) {
    constexpr int M = rows.value, N = columns.value;
    const S* pixels[2][(M + 2) * (N + 2)];
    find_inputs<M, N>(task, space.tiles[0], zeros, pixels[0]);
    for (int64_t tile = 0; tile < tiles; ++tile, v += stride) {
      const S **now = pixels[tile % 2], **next = pixels[(tile + 1) % 2];
      find_inputs<M, N>(task, space.tiles[std::min(tile + 1, tiles - 1)], zeros, next);
      if (task.shape.quantized)
        load_tile_int16<M, N, V>(now, next, task.shape, v, step, &space.scales[tile], tiles);
      else
        load_tile<M, N, V>(now, next, task.shape.in_channels, v, step);
    }
  });
}

// Writes z[tile][output][0..16] of one panel of `tiles` tiles; position p of M is at m + p * step. Returns false if a z
// is not finite.
template <class V>
bool transform_outputs(int64_t positions, const float* m, int64_t step, int64_t tiles, float* z) {
  constexpr int LANES = sizeof(V) / sizeof(float);
  V special{};
  with_tile(positions, [&](auto rows, auto columns) {
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t part = 0; part < PANEL; part += LANES)
        transform_output<rows.value, columns.value>(m + tile * PANEL + part, step,
                                                    z + tile * rows.value * columns.value * PANEL + part, special);
  });
  bool finite = true;
  for (int i = 0; i < LANES; ++i) finite &= special[i] == 0;
  return finite;
}

// Writes the outputs of one tile, 16 channels from `channel`, through the epilogue.
template <class SlopeKind, class Place, class Dropout, class S>
void finish_tile(const Task<S>& task, const Tile& tile, const float* z, int64_t channel, SlopeKind, Place, Dropout) {
  const int64_t channels = task.shape.out_channels, count = std::min(PANEL, channels - channel);
  const int64_t area = task.shape.out_height * task.shape.out_width;
  for_outputs(task.shape, tile, [&](int64_t output, int64_t pixel) {
    const int64_t at = pixel * channels + channel;
    const int64_t index = (tile.image * channels + channel - tile.image) * area + pixel;
    EpilogueLoop<S, float> loop{z + output * PANEL,
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
  });
}

template <class S>
void finish_group(const Task<S>& task, const Tile* tiles, int64_t count, int64_t panel, const float* z) {
  const int64_t step = task.shape.tile.rows * task.shape.tile.columns * PANEL;
  select(task.slope, task.place, task.dropout, [&](auto slope, auto place, auto dropout) {
    for (int64_t i = 0; i < count; ++i) finish_tile(task, tiles[i], z + i * step, panel * PANEL, slope, place, dropout);
  });
}

// The transforms and the epilogue, compiled for each instruction set and storage type.
ATROUS_CONTRACT ATROUS_AVX512 bool wide_outputs(int64_t positions, const float* m, int64_t step, int64_t tiles,
                                                float* z) {
  return transform_outputs<Vector<16>>(positions, m, step, tiles, z);
}
ATROUS_CONTRACT ATROUS_NARROW bool narrow_outputs(int64_t positions, const float* m, int64_t step, int64_t tiles,
                                                  float* z) {
  return transform_outputs<Vector<8>>(positions, m, step, tiles, z);
}
#define ATROUS_LOAD_AND_FINISH(S)                                                                                   \
  ATROUS_CONTRACT ATROUS_AVX512 void wide_load(const Task<S>& task, Workspace& space, float* v) {                   \
    load_block<Vector<16>>(task, space, v);                                                                         \
  }                                                                                                                 \
  ATROUS_CONTRACT ATROUS_NARROW void narrow_load(const Task<S>& task, Workspace& space, float* v) {                 \
    load_block<Vector<8>>(task, space, v);                                                                          \
  }                                                                                                                 \
  ATROUS_CLONES void finish(const Task<S>& task, const Tile* tiles, int64_t count, int64_t panel, const float* z) { \
    finish_group(task, tiles, count, panel, z);                                                                     \
  }
ATROUS_LOAD_AND_FINISH(float)
ATROUS_LOAD_AND_FINISH(Half)
ATROUS_LOAD_AND_FINISH(BFloat16)

template <class S>
void load_tiles(const Task<S>& task, int64_t first, int64_t last, Workspace& space) {
  const int64_t tiles = last - first, positions = task.shape.tile.positions();
  space.tiles.clear();
  for (int64_t tile = first; tile < last; ++tile) space.tiles.push_back(tile_at(task.shape, tile));
  reserve(space.zeros, odd_lines(task.shape.in_channels));
  reserve(space.scales, positions * task.shape.chunks() * tiles);
  float* v = reserve(space.v, positions * odd_lines(tiles * task.shape.v_step()));
  wide_vectors ? wide_load(task, space, v) : narrow_load(task, space, v);
}

constexpr int64_t GROUP = 8;  // tiles whose outputs lie in the L1 cache between transform and epilogue

// Finishes one panel of all tiles; position p of M is at m + p * step.
template <class S>
void finish_panel(const Task<S>& task, const Workspace& space, int64_t panel, const float* m, int64_t step) {
  float z[GROUP * MAX_TILE * MAX_TILE * PANEL];
  const int64_t tiles = space.tiles.size(), positions = task.shape.tile.positions();
  for (int64_t tile = 0; tile < tiles; tile += GROUP, m += GROUP * PANEL) {
    const int64_t count = std::min(GROUP, tiles - tile);
    const bool finite =
        wide_vectors ? wide_outputs(positions, m, step, count, z) : narrow_outputs(positions, m, step, count, z);
    if (!finite) task.special.store(true, std::memory_order_relaxed);
    finish(task, &space.tiles[tile], count, panel, z);
  }
}

// Prefetches part `part` of `parts` of the memory that finish_panel reads and writes.
template <class S>
void prefetch_panel(const Task<S>& task, const Workspace& space, int64_t panel, int64_t part, int64_t parts) {
  const int64_t tiles = space.tiles.size();
  for (int64_t i = tiles * part / parts; i < tiles * (part + 1) / parts; ++i)
    for_outputs(task.shape, space.tiles[i], [&](int64_t, int64_t pixel) {
      const int64_t at = pixel * task.shape.out_channels + panel * PANEL;
      __builtin_prefetch(task.output + at, 1, 2);
      if (task.residual) __builtin_prefetch(task.residual + at, 0, 2);
    });
}

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

// transformed: _winograd_weight(weight, turned, ...). The weight itself is read if an output is not finite.
Tensor winograd_epilogue(Epilogue& arguments, Tensor& input, const Tensor& weight, const Tensor& transformed,
                         bool turned, const OptionalTensor& bias, const Sizes& padding, const Sizes& dilation) {
  const Geometry shape = geometry(input, weight, transformed, turned, padding, dilation);
  if (!is_dense(input.sizes(), input.strides(), Order::channels_last))
    input = torch::stable::contiguous(input, memory_format(Order::channels_last));
  const Sizes sizes{shape.images, shape.out_channels, shape.out_height, shape.out_width};
  check_vector("bias", bias, shape.out_channels);
  arguments.fit(sizes, strides_of(sizes, Order::channels_last), input.scalar_type());
  Tensor output = empty_tensor(input, sizes, Order::channels_last);
  if (output.numel() == 0) return output;
  const Channels<float> vectors(arguments, shape.out_channels, bias, shape.panels() * PANEL);
  std::atomic<bool> special = false;
  with_storage(input, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    if constexpr (!std::is_same_v<S, double>)
      convolve(Task<S>{shape, data, arguments.residual_data<S>(), static_cast<const float*>(transformed.data_ptr()),
                       static_cast<S*>(output.mutable_data_ptr()), arguments.slope_kind, arguments.place(),
                       arguments.dropout > 0, vectors, special});
  });
  // B' d B spreads an infinity to outputs that do not depend on it, as NaN, and large inputs overflow earlier
  if (special)
    return conv_epilogue(arguments, input, turned ? turn(weight) : weight, bias, {1, 1}, padding, dilation, 1);
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_winograd_epilogue", &OpAdapter<&winograd_epilogue>::call); }

}  // namespace atrous::cpu
