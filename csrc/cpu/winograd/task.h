// A Winograd convolution with its epilogue, and its two stages before and after the GEMMs.
#pragma once

#include <atomic>

#include "../channels.h"
#include "plan.h"

namespace atrous::winograd {

// S: the storage type.
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

// Fills the workspace with the tiles [first, last) and their transformed inputs: V[position][tile][c], in int16 with
// scales[position][chunk][tile].
template <class S>
void load_tiles(const Task<S>& task, int64_t first, int64_t last, Workspace& space);

// Transforms one panel of M back and writes its outputs through the epilogue; position p of M is at m + p * step.
template <class S>
void finish_panel(const Task<S>& task, const Workspace& space, int64_t panel, const float* m, int64_t step);

// Prefetches part `part` of `parts` of the memory that finish_panel reads and writes.
template <class S>
void prefetch_panel(const Task<S>& task, const Workspace& space, int64_t panel, int64_t part, int64_t parts);

}  // namespace atrous::winograd
