// _winograd_epilogue: a 3x3 convolution of stride 1 and any dilation on channels_last tensors, the
// epilogue applied to each output before it leaves the cache.
//
// A task is a block of tiles and a range of output channels: transform the block's input (V), then for a few panels of
// 16 output channels at a time multiply it position by position with the weight (M stays in L2), transform back. V may
// be larger than L2: one position of it is not, and all panels of the few are done with it before the next.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "../channels.h"
#include "../epilogue_loop.h"
#include "../primitives.h"
#include "multiply.h"
#include "plan.h"
#include "transform.h"

namespace atrous::cpu {

namespace {

using namespace winograd;

template <class S>
struct Job {
  const Geometry& shape;
  const S *input, *residual;
  const float* transformed;
  S* output;
  Slope slope;
  Residual place;
  bool dropout;
  const Channels<float>& vectors;
};

// What a thread works in; kept from call to call.
struct Workspace {
  std::vector<float> v, m, zeros;
  std::vector<Tile> tiles;
};

template <class T>
T* reserve(std::vector<T>& values, int64_t size) {
  if (int64_t(values.size()) < size) values.resize(size);
  return values.data();
}

// v[position][tile][channel] of the tile whose first output is (top, left).
template <class S>
void transform_tile(const Job<S>& job, int64_t image, int64_t top, int64_t left, const S* zeros, float* v,
                    int64_t step) {
  const Geometry& shape = job.shape;
  const S* pixels[POSITIONS];
  for (int i = 0; i < 4; ++i) {
    const int64_t y = top - shape.padding[0] + i * shape.dilation[0];
    for (int j = 0; j < 4; ++j) {
      const int64_t x = left - shape.padding[1] + j * shape.dilation[1];
      const bool inside = y >= 0 && y < shape.height && x >= 0 && x < shape.width;
      const int64_t pixel = (image * shape.height + y) * shape.width + x;
      pixels[4 * i + j] = inside ? job.input + pixel * shape.in_channels : zeros;
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
void load_block(const Job<S>& job, int64_t first, int64_t last, Workspace& space) {
  const Geometry& shape = job.shape;
  const int64_t stride = shape.tile_step(), step = (last - first) * stride;
  const int64_t columns = shape.lefts.size(), rows = shape.tops.size();
  const S* zeros = reinterpret_cast<const S*>(reserve(space.zeros, stride));
  float* v = reserve(space.v, POSITIONS * step);
  space.tiles.clear();
  for (int64_t tile = first; tile < last; ++tile, v += stride) {
    const int64_t image = tile / columns / rows, top = shape.tops[tile / columns % rows],
                  left = shape.lefts[tile % columns];
    space.tiles.push_back(tile_at(shape, image, top, left));
    transform_tile(job, image, top, left, zeros, v, step);
  }
}

// The outputs of one tile, 16 channels from `channel`, through the epilogue to memory.
template <class Variant, class Place, class Dropout, class S>
void finish_tile(const Job<S>& job, const Tile& tile, const float* m, int64_t step, int64_t channel, Variant, Place,
                 Dropout) {
  float z[4 * PANEL];
  for (int64_t half = 0; half < PANEL; half += LANES) transform_output(m + half, step, z + half);
  const int64_t channels = job.shape.out_channels, count = std::min(PANEL, channels - channel);
  const int64_t area = job.shape.out_height * job.shape.out_width;
  for (int i = 0; i < 4; ++i) {
    if (tile.pixels[i] < 0) continue;
    const int64_t at = tile.pixels[i] * channels + channel;
    const int64_t index = (tile.image * channels + channel - tile.image) * area + tile.pixels[i];
    Row<S, float> row{z + i * PANEL,
                      job.residual + at,
                      job.output + at,
                      count,
                      &job.vectors.scale[channel],
                      &job.vectors.shift[channel],
                      &job.vectors.slope[channel],
                      uint64_t(index),
                      uint64_t(area)};
    if (count < PANEL) {
      run_row<Variant::value, Place::value, Dropout::value, true>(row, job.vectors.draw);
    } else {
      row.length = PANEL;  // a constant: the loop is unrolled
      run_row<Variant::value, Place::value, Dropout::value, true>(row, job.vectors.draw);
    }
  }
}

// One panel of all tiles; m lies at m + position * step.
template <class S>
void finish_panel(const Job<S>& job, const Workspace& space, int64_t panel, const float* m, int64_t step) {
  select(job.slope, job.place, job.dropout, [&](auto slope, auto place, auto dropout) {
    for (const Tile& tile : space.tiles) {
      finish_tile(job, tile, m, step, panel * PANEL, slope, place, dropout);
      m += PANEL;
    }
  });
}

// Brings nearer what finish_panel will read and write: part `part` of 16.
template <class S>
void prefetch_panel(const Job<S>& job, const Workspace& space, int64_t panel, int64_t part) {
  const int64_t tiles = space.tiles.size();
  for (int64_t i = tiles * part / POSITIONS; i < tiles * (part + 1) / POSITIONS; ++i)
    for (const int64_t pixel : space.tiles[i].pixels) {
      if (pixel < 0) continue;
      const int64_t at = pixel * job.shape.out_channels + panel * PANEL;
      __builtin_prefetch(job.output + at, 1, 2);
      if (job.residual) __builtin_prefetch(job.residual + at, 0, 2);
    }
}

// Compiled for each instruction set and storage type: the two ends of a block.
#define ATROUS_ENDS(S)                                                                                      \
  ATROUS_CLONES void load_tiles(const Job<S>& job, int64_t first, int64_t last, Workspace& space) {         \
    load_block(job, first, last, space);                                                                    \
  }                                                                                                         \
  ATROUS_CLONES void finish_tiles(const Job<S>& job, const Workspace& space, int64_t panel, const float* m, \
                                  int64_t step) {                                                           \
    finish_panel(job, space, panel, m, step);                                                               \
  }
ATROUS_ENDS(float)
ATROUS_ENDS(Half)
ATROUS_ENDS(BFloat16)

// `panels` panels from `panel` of a block whose input is transformed.
template <class S>
void run_panels(const Job<S>& job, Workspace& space, int64_t panel, int64_t panels) {
  const Geometry& shape = job.shape;
  const int64_t tiles = space.tiles.size(), weights = shape.in_channels * PANEL, step = panels * tiles * PANEL;
  float* m = reserve(space.m, POSITIONS * step);
  const float* u = job.transformed + panel * POSITIONS * weights;
  for (int64_t position = 0; position < POSITIONS; ++position) {
    for (int64_t i = 0; i < panels; ++i) prefetch_panel(job, space, panel + i, position);
    multiply({space.v.data() + position * tiles * shape.tile_step(), u + position * weights, m + position * step, tiles,
              shape.in_channels, panels, shape.tile_step(), POSITIONS * weights});
  }
  for (int64_t i = 0; i < panels; ++i) finish_tiles(job, space, panel + i, m + i * tiles * PANEL, step);
}

template <class S>
void run(const Job<S>& job) {
  const Cut work = cut(job.shape, torch::stable::get_num_threads());
  const int64_t tiles = job.shape.tiles(), panels = job.shape.panels();
  torch::stable::parallel_for(0, work.blocks * work.splits, 1, [&](int64_t begin, int64_t end) {
    static thread_local Workspace space;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / work.splits, split = task % work.splits;
      load_tiles(job, tiles * block / work.blocks, tiles * (block + 1) / work.blocks, space);
      const int64_t last = panels * (split + 1) / work.splits;
      for (int64_t panel = panels * split / work.splits; panel < last; panel += work.panels)
        run_panels(job, space, panel, std::min(work.panels, last - panel));
    }
  });
}

}  // namespace

Tensor winograd_epilogue(const Arguments& arguments, const Tensor& input, const Tensor& transformed,
                         int64_t out_channels, const OptionalTensor& bias, const Sizes& padding,
                         const Sizes& dilation) {
  const Geometry shape = geometry(input, out_channels, padding, dilation);
  check_weight(transformed, shape);
  const Sizes sizes{shape.images, out_channels, shape.out_height, shape.out_width};
  check_vector("bias", bias, out_channels);
  arguments.check(sizes, strides_of(sizes, Order::channels_last), input.scalar_type());
  Tensor output = torch::stable::empty(sizes, input.scalar_type(), std::nullopt, input.device(), std::nullopt,
                                       torch::headeronly::MemoryFormat::ChannelsLast);
  if (output.numel() == 0) return output;
  const Channels<float> vectors(arguments, out_channels, bias, shape.panels() * PANEL);
  with_storage(input, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    if constexpr (!std::is_same_v<S, double>)
      run(Job<S>{shape, data,
                 arguments.residual ? static_cast<const S*>(arguments.residual->const_data_ptr()) : nullptr,
                 transformed.const_data_ptr<float>(), static_cast<S*>(output.mutable_data_ptr()), arguments.kind(),
                 arguments.place(), arguments.dropout > 0, vectors});
  });
  return output;
}

}  // namespace atrous::cpu
