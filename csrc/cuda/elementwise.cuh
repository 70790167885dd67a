// The tiling of elementwise kernels: the tensor as a matrix in which each column belongs to one channel.
//
//     order              rows               columns
//     channels last      pixels             channels
//     channels first     images             pixels of all channels
//     a single image     parts of a plane   pixels of one part, of all channels
//
// A thread owns one vector of columns, reads the parameters of their channels once, and iterates over the rows.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "../layout.h"
#include "vector_access.cuh"

namespace atrous::cuda {

constexpr int THREADS = 256;
constexpr int LANES = 128;               // at most so many threads of a block are side by side in a row
constexpr int64_t BLOCKS = 2048;         // enough to keep any GPU busy
constexpr int64_t MAX_ROWS = 32;         // most rows of a thread; a large tensor gets more than BLOCKS blocks instead
constexpr int64_t MAX_PLANE_PARTS = 16;  // into which a single image's planes are divided
constexpr int64_t MAX_GRID_Y = 65535;    // CUDA's limit

// The number of threads side by side over `vectors` vectors of a row: a power of two, at most `limit`.
inline int lanes_for(int64_t vectors, int limit) {
  int lanes = 1;
  while (lanes < limit && lanes < vectors) lanes *= 2;
  return lanes;
}

struct ElementwiseTiling {
  Layout layout;
  int64_t rows, cols, pixels;  // pixels: columns per channel
  int64_t row_stride, plane;   // in elements: from row to row, and from one channel's first column to the next's
  int lanes;                   // threads of a block that are side by side in a row
  bool aligned;                // every vector is whole and 16-byte aligned

  // size: elements per vector.
  ElementwiseTiling(const Layout& layout, int size, bool aligned)
      : layout(layout),
        rows(layout.channels_last ? layout.images * layout.spatial : layout.images),
        pixels(layout.channels_last ? 1 : layout.spatial),
        plane(pixels) {
    // A single image gets two rows, or half of a block's threads would be idle. A large one gets more, or each thread
    // would have a single vector.
    const int64_t wanted = std::min(MAX_PLANE_PARTS, ceil_div(layout.size(), int64_t(size) * THREADS * BLOCKS) + 1);
    if (rows == 1)
      for (; rows < wanted && pixels % (2 * size) == 0; pixels /= 2) rows *= 2;
    cols = layout.size() / rows;
    row_stride = pixels == plane ? cols : pixels;
    lanes = lanes_for(ceil_div(cols, size), LANES);
    this->aligned = aligned && cols % size == 0;
  }

  dim3 blocks(int size) const {
    const int64_t across = ceil_div(ceil_div(cols, size), lanes), members = THREADS / lanes;
    const int64_t down = std::max(ceil_div(BLOCKS, across), ceil_div(rows, members * MAX_ROWS));
    return dim3(unsigned(across), unsigned(std::min({down, ceil_div(rows, members), MAX_GRID_Y})));
  }

  // The first column of this block, and this thread's first column, first row and step between rows.
  __device__ int64_t block_column(int size) const { return int64_t(blockIdx.x) * lanes * size; }
  __device__ int64_t column(int size) const { return block_column(size) + int(threadIdx.x) % lanes * size; }
  __device__ int64_t row() const { return int64_t(blockIdx.y) * (THREADS / lanes) + int(threadIdx.x) / lanes; }
  __device__ int64_t step() const { return int64_t(gridDim.y) * (THREADS / lanes); }

  // Calls function(at, unmasked) for this thread's vectors: their offsets, and Unmasked or Masked.
  template <class Function>
  __device__ void for_each_vector(int64_t column, Function&& function) const {
    const int64_t first = column / pixels * plane + column % pixels, end = first + rows * row_stride;
    const int64_t begin = first + row() * row_stride, jump = step() * row_stride;
    const auto iterate = [&](auto unmasked) {
      for (int64_t at = begin; at < end; at += jump) function(at, unmasked);
    };
    aligned ? iterate(Unmasked{}) : iterate(Masked{});
  }
};

// Reads read(channel) for each of a thread's columns into `own`. A block computes every channel once, in shared memory:
// there may be far fewer channels than columns, and read(channel) takes longer than an element's epilogue.
template <int SIZE, class Value, class Read>
__device__ void read_channels(const ElementwiseTiling& tiling, Value (&table)[LANES * SIZE], Value (&own)[SIZE],
                              Read&& read) {
  const int64_t begin = tiling.block_column(SIZE), end = min(begin + tiling.lanes * SIZE, tiling.cols);
  const int64_t first = begin / tiling.pixels, last = (end - 1) / tiling.pixels;
#pragma unroll 1
  for (int i = threadIdx.x; i <= last - first; i += THREADS) table[i] = read(first + i);
  __syncthreads();
  const int64_t column = tiling.column(SIZE);
  int64_t channel = column / tiling.pixels, pixel = column % tiling.pixels;
#pragma unroll
  for (int i = 0; i < SIZE; ++i) {
    if (column + i < tiling.cols) own[i] = table[channel - first];
    if (++pixel < tiling.pixels) continue;
    pixel = 0;
    ++channel;
  }
}

}  // namespace atrous::cuda
