// The last stage of a Winograd convolution: A' m A and the epilogue.
#include "../epilogue_loop.h"
#include "instruction_sets.h"
#include "task.h"

namespace atrous::winograd {

namespace {

constexpr int64_t GROUP = 8;  // tiles whose outputs lie in the L1 cache between transform and epilogue

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

// The transform and the epilogue, compiled for each instruction set and storage type.
ATROUS_CONTRACT ATROUS_AVX512 bool wide_outputs(int64_t positions, const float* m, int64_t step, int64_t tiles,
                                                float* z) {
  return transform_outputs<Vector<16>>(positions, m, step, tiles, z);
}
ATROUS_CONTRACT ATROUS_NARROW bool narrow_outputs(int64_t positions, const float* m, int64_t step, int64_t tiles,
                                                  float* z) {
  return transform_outputs<Vector<8>>(positions, m, step, tiles, z);
}
#define ATROUS_FINISH(S)                                                                                            \
  ATROUS_CLONES void finish(const Task<S>& task, const Tile* tiles, int64_t count, int64_t panel, const float* z) { \
    finish_group(task, tiles, count, panel, z);                                                                     \
  }
ATROUS_FINISH(float)
ATROUS_FINISH(Half)
ATROUS_FINISH(BFloat16)

}  // namespace

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

#define ATROUS_INSTANTIATE(S)                                                                   \
  template void finish_panel(const Task<S>&, const Workspace&, int64_t, const float*, int64_t); \
  template void prefetch_panel(const Task<S>&, const Workspace&, int64_t, int64_t, int64_t);
ATROUS_INSTANTIATE(float)
ATROUS_INSTANTIATE(Half)
ATROUS_INSTANTIATE(BFloat16)

}  // namespace atrous::winograd
