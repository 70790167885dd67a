// The first stage of a Winograd convolution: B' d B of a block of tiles.
#include "instruction_sets.h"
#include "pixels.h"
#include "task.h"

namespace atrous::winograd {

namespace {

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

// load_block, compiled for each instruction set and storage type.
#define ATROUS_LOAD(S)                                                                              \
  ATROUS_CONTRACT ATROUS_AVX512 void wide_load(const Task<S>& task, Workspace& space, float* v) {   \
    load_block<Vector<16>>(task, space, v);                                                         \
  }                                                                                                 \
  ATROUS_CONTRACT ATROUS_NARROW void narrow_load(const Task<S>& task, Workspace& space, float* v) { \
    load_block<Vector<8>>(task, space, v);                                                          \
  }
ATROUS_LOAD(float)
ATROUS_LOAD(Half)
ATROUS_LOAD(BFloat16)

}  // namespace

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

template void load_tiles(const Task<float>&, int64_t, int64_t, Workspace&);
template void load_tiles(const Task<Half>&, int64_t, int64_t, Workspace&);
template void load_tiles(const Task<BFloat16>&, int64_t, int64_t, Workspace&);

}  // namespace atrous::winograd
