// The epilogue as a CUTLASS output operator, applied to the accumulators before they are stored.
#pragma once

#include <cutlass/array.h>
#include <cutlass/epilogue/threadblock/default_thread_map_tensor_op.h>
#include <cutlass/numeric_conversion.h>

#include "../../channel_vectors.h"

namespace atrous::cuda {

// The epilogue parameters of a tile's channels, in shared memory for the lifetime of the kernel.
template <int CHANNELS>
struct TileChannels {
  float scale[CHANNELS], shift[CHANNELS], slope[CHANNELS];

  static __device__ TileChannels& here() {
    __shared__ alignas(16) char memory[sizeof(TileChannels)];
    return reinterpret_cast<TileChannels&>(memory);
  }

  // Loads with `threads` threads, one channel per thread and pass, up to channel `end`. The caller synchronizes.
  ATROUS_HD void load(const ChannelVectors& vectors, int first, int end, int thread, int threads) {
    for (int i = thread; i < CHANNELS && first + i < end; i += threads) {
      const Channel<float> channel = vectors.at<float>(first + i);
      scale[i] = channel.affine.scale;
      shift[i] = channel.affine.shift;
      slope[i] = channel.slope;
    }
  }
  // Loads with all threads of the block and synchronizes.
  __device__ void load(const ChannelVectors& vectors, int first, int end) {
    load(vectors, first, end, threadIdx.x, blockDim.x);
    __syncthreads();
  }
};

// The epilogue of COUNT adjacent channels of a pixel.
template <class Element, int COUNT, Slope SLOPE, Residual RESIDUAL>
struct EpilogueValues {
  using Accumulators = cutlass::Array<float, COUNT>;
  using Outputs = cutlass::Array<Element, COUNT>;
  Accumulators scale, shift, slope;

  ATROUS_HD Outputs operator()(const Accumulators& sums, const Outputs& residual) const {
    const Accumulators wide_residual = cutlass::NumericArrayConverter<float, Element, COUNT>()(residual);
    Accumulators y;
    for (int i = 0; i < COUNT; ++i)
      y[i] = epilogue<float, SLOPE, RESIDUAL, false>(sums[i], {scale[i], shift[i]}, slope[i], wide_residual[i], 1);
    return cutlass::NumericArrayConverter<Element, float, COUNT>()(y);
  }
  ATROUS_HD Outputs operator()(const Accumulators& sums) const { return (*this)(sums, Outputs()); }
};

// ThreadMap gives a thread the same COUNT channels throughout, so their parameters are read once.
template <class Element, int COUNT, class ThreadMap, int CHANNELS, Slope SLOPE, Residual RESIDUAL>
struct EpilogueOp : EpilogueValues<Element, COUNT, SLOPE, RESIDUAL> {
  static_assert(ThreadMap::Iterations::kColumn == 1, "a thread must have the same channels throughout");
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
  // Required by CUTLASS for serial split-K, which we do not use.
  __device__ void set_k_partition(int, int) {}
};

}  // namespace atrous::cuda
