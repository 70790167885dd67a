// The epilogue where CUTLASS's own puts an output operator: between the sums and the store.
#pragma once

#include <cutlass/array.h>
#include <cutlass/epilogue/threadblock/default_thread_map_tensor_op.h>
#include <cutlass/numeric_conversion.h>

#include "../channels.cuh"

namespace atrous::cuda {

// The values of a tile's channels, in shared memory for the length of the kernel.
template <int CHANNELS>
struct TileChannels {
  float scale[CHANNELS], shift[CHANNELS], slope[CHANNELS];

  static __device__ TileChannels& here() {
    __shared__ alignas(16) char memory[sizeof(TileChannels)];
    return reinterpret_cast<TileChannels&>(memory);
  }

  // By `threads` threads, each a channel; channels from `end` on are not read. A barrier follows.
  ATROUS_HD void load(const Vectors& vectors, int first, int end, int thread, int threads) {
    for (int i = thread; i < CHANNELS && first + i < end; i += threads) {
      const Channel<float> channel = vectors.at<float>(first + i);
      scale[i] = channel.affine.scale;
      shift[i] = channel.affine.shift;
      slope[i] = channel.slope;
    }
  }
  // By all threads of the block.
  __device__ void load(const Vectors& vectors, int first, int end) {
    load(vectors, first, end, threadIdx.x, blockDim.x);
    __syncthreads();
  }
};

// The epilogue of COUNT neighbouring channels of a pixel.
template <class Element, int COUNT, Slope SLOPE, Residual RESIDUAL>
struct EpilogueValues {
  using Sums = cutlass::Array<float, COUNT>;
  using Outputs = cutlass::Array<Element, COUNT>;
  Sums scale, shift, slope;

  ATROUS_HD Outputs operator()(const Sums& sums, const Outputs& residual) const {
    const Sums added = cutlass::NumericArrayConverter<float, Element, COUNT>()(residual);
    Sums y;
    for (int i = 0; i < COUNT; ++i)
      y[i] = epilogue<float, SLOPE, RESIDUAL, false>(sums[i], {scale[i], shift[i]}, slope[i], added[i], 1);
    return cutlass::NumericArrayConverter<Element, float, COUNT>()(y);
  }
  ATROUS_HD Outputs operator()(const Sums& sums) const { return (*this)(sums, Outputs()); }
};

// ThreadMap says which channels a thread has: always the same COUNT of them, so they are read once.
template <class Element, int COUNT, class ThreadMap, int CHANNELS, Slope SLOPE, Residual RESIDUAL>
struct EpilogueOp : EpilogueValues<Element, COUNT, SLOPE, RESIDUAL> {
  static_assert(ThreadMap::Iterations::kColumn == 1, "a thread must keep to its channels");
  using ElementOutput = Element;
  using ElementAccumulator = float;
  using ElementCompute = float;
  static constexpr int kCount = COUNT;
  struct Params {};

  __device__ explicit EpilogueOp(const Params&) {
    const TileChannels<CHANNELS>& channels = TileChannels<CHANNELS>::here();
    const int first = ThreadMap::initial_offset(threadIdx.x).column();
    for (int i = 0; i < COUNT; ++i) {
      this->scale[i] = channels.scale[first + i];
      this->shift[i] = channels.shift[first + i];
      if (SLOPE != Slope::relu) this->slope[i] = channels.slope[first + i];
    }
  }
  __device__ static constexpr bool is_source_needed() { return RESIDUAL != Residual::none; }
  // Of reductions in turns, which we do not have.
  __device__ void set_k_partition(int, int) {}
};

}  // namespace atrous::cuda
