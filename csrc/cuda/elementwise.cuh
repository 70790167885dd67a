// How threads share a tensor that is worked on element by element: as a matrix whose columns have one channel each.
//
//     order              rows               columns
//     channels last      pixels             channels
//     channels first     images             pixels of all channels
//     a single image     parts of a plane   pixels of such a part of all channels
//
// A thread has one pack of columns, whose values it reads once, and goes from row to row.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "../layout.h"
#include "vector_access.cuh"

namespace atrous::cuda {

constexpr int THREADS = 256;
constexpr int LANES = 128;         // of a block that lie side by side, at most
constexpr int64_t BLOCKS = 2048;   // that keep any card busy
constexpr int64_t MOST_ROWS = 32;  // of a thread, where there are more blocks than that
constexpr int64_t MOST_CUTS = 16;  // of a plane
constexpr int64_t MOST_Y = 65535;  // blocks in the grid's second dimension

__host__ __device__ inline int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

// A power of two of threads that lie side by side over so many packs.
inline int lanes_for(int64_t packs, int most) {
  int lanes = 1;
  while (lanes < most && lanes < packs) lanes *= 2;
  return lanes;
}

struct Walk {
  Layout layout;
  int64_t rows, cols, pixels;  // pixels: columns of a channel
  int64_t row_stride, plane;   // elements from row to row, and from one channel's columns to the next's
  int lanes;                   // threads of a block that lie side by side
  bool aligned;                // every pack is whole, at a multiple of 16 bytes

  // size: elements of a pack
  Walk(const Layout& layout, int size, bool aligned)
      : layout(layout),
        rows(layout.channels_last ? layout.images * layout.spatial : layout.images),
        pixels(layout.channels_last ? 1 : layout.spatial),
        plane(pixels) {
    // one image: two rows, or half of a block's threads would have none; more where a thread would have a single pack
    const int64_t wanted = std::min(MOST_CUTS, parts(layout.size(), int64_t(size) * THREADS * BLOCKS) + 1);
    if (rows == 1)
      for (; rows < wanted && pixels % (2 * size) == 0; pixels /= 2) rows *= 2;
    cols = layout.size() / rows;
    row_stride = pixels == plane ? cols : pixels;
    lanes = lanes_for(parts(cols, size), LANES);
    this->aligned = aligned && cols % size == 0;
  }

  dim3 blocks(int size) const {
    const int64_t across = parts(parts(cols, size), lanes), members = THREADS / lanes;
    const int64_t down = std::max(parts(BLOCKS, across), parts(rows, members * MOST_ROWS));
    return dim3(unsigned(across), unsigned(std::min({down, parts(rows, members), MOST_Y})));
  }

  // The first column of this block and of this thread, its row, and from one row to its next.
  __device__ int64_t block_column(int size) const { return int64_t(blockIdx.x) * lanes * size; }
  __device__ int64_t column(int size) const { return block_column(size) + int(threadIdx.x) % lanes * size; }
  __device__ int64_t row() const { return int64_t(blockIdx.y) * (THREADS / lanes) + int(threadIdx.x) / lanes; }
  __device__ int64_t step() const { return int64_t(gridDim.y) * (THREADS / lanes); }

  // run(at, whole) for this thread's packs: where each lies, and whether all packs are Whole or Parted.
  template <class Run>
  __device__ void each_row(int64_t column, Run&& run) const {
    const int64_t first = column / pixels * plane + column % pixels, end = first + rows * row_stride;
    const int64_t begin = first + row() * row_stride, jump = step() * row_stride;
    const auto go = [&](auto whole) {
      for (int64_t at = begin; at < end; at += jump) run(at, whole);
    };
    aligned ? go(Whole{}) : go(Parted{});
  }
};

// read(channel) for each of a thread's columns. A block reads every channel once: they may be far fewer than columns,
// and what is computed of them takes longer than an element's epilogue.
template <int SIZE, class Value, class Read>
__device__ void read_channels(const Walk& walk, Value (&table)[LANES * SIZE], Value (&own)[SIZE], Read&& read) {
  const int64_t begin = walk.block_column(SIZE), end = min(begin + walk.lanes * SIZE, walk.cols);
  const int64_t first = begin / walk.pixels, last = (end - 1) / walk.pixels;
#pragma unroll 1
  for (int i = threadIdx.x; i <= last - first; i += THREADS) table[i] = read(first + i);
  __syncthreads();
  const int64_t column = walk.column(SIZE);
  int64_t channel = column / walk.pixels, pixel = column % walk.pixels;
#pragma unroll
  for (int i = 0; i < SIZE; ++i) {
    if (column + i < walk.cols) own[i] = table[channel - first];
    if (++pixel < walk.pixels) continue;
    pixel = 0;
    ++channel;
  }
}

}  // namespace atrous::cuda
