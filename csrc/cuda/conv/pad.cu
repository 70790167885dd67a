// Pads an input or a weight with zeros and converts it to channels_last, in one pass from any strides.
#include "../vector_access.cuh"
#include "problem.h"

namespace atrous::cuda {

namespace {

constexpr int WIDTH = 4;  // channels of a thread
constexpr int THREADS = 256;
constexpr int64_t MAX_ROWS = 65535;  // CUDA's limit of gridDim.y

// A block has vectors of WIDTH channels of one row. S is an unsigned integer of the element's size.
template <class S>
__global__ void __launch_bounds__(THREADS) conv_pad_kernel(const S* from, S* to, ConvPad pad) {
  const unsigned vectors = unsigned(pad.channels) / WIDTH, width = unsigned(pad.w + 2 * pad.margin);
  const unsigned at = blockIdx.x * THREADS + threadIdx.x;
  if (at >= vectors * width) return;
  const int64_t column = int64_t(at / vectors) - pad.margin, channel = at % vectors * WIDTH;
  const bool inside = column >= 0 && column < pad.w;
  for (unsigned row = blockIdx.y; row < unsigned(pad.n * pad.h); row += gridDim.y) {
    const unsigned image = row / unsigned(pad.h), line = row % unsigned(pad.h);
    const S* pixel = from + image * pad.strides[0] + line * pad.strides[2] + column * pad.strides[3];
    AlignedVector<S, WIDTH> values{};
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (inside && channel + i < pad.c) values.at[i] = pixel[(channel + i) * pad.strides[1]];
    store(to + (int64_t(row) * width * vectors + at) * WIDTH, values);
  }
}

template <class S>
cudaError_t launch_pad(const ConvPad& pad, cudaStream_t stream) {
  const int64_t vectors = pad.channels / WIDTH * (pad.w + 2 * pad.margin), rows = pad.n * pad.h;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned((vectors + THREADS - 1) / THREADS), unsigned(rows < MAX_ROWS ? rows : MAX_ROWS));
  config.blockDim = dim3(THREADS);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, conv_pad_kernel<S>, static_cast<const S*>(pad.from), static_cast<S*>(pad.to), pad);
}

}  // namespace

cudaError_t conv_pad(const ConvPad& pad, cudaStream_t stream) {
  return pad.type == ScalarType::Float ? launch_pad<uint32_t>(pad, stream) : launch_pad<uint16_t>(pad, stream);
}

}  // namespace atrous::cuda
