// _winograd_epilogue: a 3x3 convolution of stride 1 and any dilation on channels_last tensors, the
// epilogue applied to each output before it leaves the cache.
//
// A task is a block of tiles and a range of output channels: transform the block's input (V stays in L2), then for each
// panel of 16 output channels multiply it position by position with the weight (M stays in L1 or L2), transform back.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "channels.h"
#include "primitives.h"
#include "row.h"
#include "winograd.h"
#include "winograd_plan.h"

// Multiply and add become fma in the function that is so marked: flags.txt forbids it elsewhere.
#if defined(__GNUC__) && !defined(__clang__)
#define ATROUS_CONTRACT __attribute__((optimize("fp-contract=fast")))
#else
#define ATROUS_CONTRACT
#endif

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
  const int64_t stride = shape.padded_channels(), step = (last - first) * stride;
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

// m[tile][0..16] = sum over c of v[tile][c] * u[c][0..16], and brings `next` nearer meanwhile.
template <int TILES>
void multiply_tiles(const float* v, int64_t stride, const float* u, float* m, int64_t channels, const float* next,
                    int64_t step) {
  Vector sums[TILES][2] = {};
  for (int64_t c = 0; c < channels; ++c) {
    __builtin_prefetch(next + c * step, 0, 2);
    const Vector u0 = load(u + c * PANEL), u1 = load(u + c * PANEL + LANES);
    for (int i = 0; i < TILES; ++i) {
      const float x = v[i * stride + c];
      sums[i][0] += x * u0;
      sums[i][1] += x * u1;
    }
  }
  for (int i = 0; i < TILES; ++i) {
    store(m + i * PANEL, sums[i][0]);
    store(m + i * PANEL + LANES, sums[i][1]);
  }
}

// One position of one panel for all tiles of a block, in groups of nearly equal size.
ATROUS_CONTRACT ATROUS_CLONES void multiply_panel(const float* v, int64_t stride, const float* u, float* m,
                                                  int64_t tiles, int64_t channels) {
  const int64_t groups = (tiles + ROWS - 1) / ROWS, step = PANEL / groups;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = tiles * group / groups, count = tiles * (group + 1) / groups - first;
    const float *rows = v + first * stride, *next = u + (channels + channels * group / groups) * PANEL;
    float* sums = m + first * PANEL;
    switch (count) {
      case 1:
        multiply_tiles<1>(rows, stride, u, sums, channels, next, step);
        break;
      case 2:
        multiply_tiles<2>(rows, stride, u, sums, channels, next, step);
        break;
      case 3:
        multiply_tiles<3>(rows, stride, u, sums, channels, next, step);
        break;
      case 4:
        multiply_tiles<4>(rows, stride, u, sums, channels, next, step);
        break;
      case 5:
        multiply_tiles<5>(rows, stride, u, sums, channels, next, step);
        break;
      default:
        multiply_tiles<6>(rows, stride, u, sums, channels, next, step);
    }
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

template <class S>
void finish_panel(const Job<S>& job, const Workspace& space, int64_t panel) {
  const int64_t tiles = space.tiles.size();
  select(job.slope, job.place, job.dropout, [&](auto slope, auto place, auto dropout) {
    for (int64_t i = 0; i < tiles; ++i)
      finish_tile(job, space.tiles[i], space.m.data() + i * PANEL, tiles * PANEL, panel * PANEL, slope, place, dropout);
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
#define ATROUS_ENDS(S)                                                                              \
  ATROUS_CLONES void load_tiles(const Job<S>& job, int64_t first, int64_t last, Workspace& space) { \
    load_block(job, first, last, space);                                                            \
  }                                                                                                 \
  ATROUS_CLONES void finish_tiles(const Job<S>& job, const Workspace& space, int64_t panel) {       \
    finish_panel(job, space, panel);                                                                \
  }
ATROUS_ENDS(float)
ATROUS_ENDS(Half)
ATROUS_ENDS(BFloat16)

template <class S>
void run(const Job<S>& job) {
  const Geometry& shape = job.shape;
  const auto [blocks, splits] = cut(shape, torch::stable::get_num_threads());
  const int64_t tiles = shape.tiles(), panels = shape.panels(), stride = shape.padded_channels();
  const int64_t weights = shape.in_channels * PANEL;
  torch::stable::parallel_for(0, blocks * splits, 1, [&, blocks = blocks, splits = splits](int64_t begin, int64_t end) {
    static thread_local Workspace space;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / splits, split = task % splits;
      const int64_t first = tiles * block / blocks, last = tiles * (block + 1) / blocks, count = last - first;
      load_tiles(job, first, last, space);
      float* m = reserve(space.m, POSITIONS * count * PANEL);
      for (int64_t panel = panels * split / splits; panel < panels * (split + 1) / splits; ++panel) {
        for (int64_t position = 0; position < POSITIONS; ++position) {
          prefetch_panel(job, space, panel, position);
          multiply_panel(space.v.data() + position * count * stride, stride,
                         job.transformed + (panel * POSITIONS + position) * weights, m + position * count * PANEL,
                         count, shape.in_channels);
        }
        finish_tiles(job, space, panel);
      }
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
