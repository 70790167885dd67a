// The zeros that an input or a weight needs before a convolution reads it, and channels last, in one pass from any
// strides.
#include "../vector_access.cuh"
#include "problem.h"

namespace atrous::cuda {

namespace {

constexpr int WIDTH = 4, THREADS = 256;  // channels of a thread
constexpr int64_t MOST_ROWS = 65535;     // of the grid

// A block has packs of a row; of two-byte and four-byte elements alone the size matters.
template <class S>
__global__ void __launch_bounds__(THREADS) conv_pad_kernel(const S* from, S* to, ConvPad pad) {
  const unsigned packs = unsigned(pad.channels) / WIDTH, width = unsigned(pad.w + 2 * pad.around);
  const unsigned at = blockIdx.x * THREADS + threadIdx.x;
  if (at >= packs * width) return;
  const int64_t column = int64_t(at / packs) - pad.around, channel = at % packs * WIDTH;
  const bool inside = column >= 0 && column < pad.w;
  for (unsigned row = blockIdx.y; row < unsigned(pad.n * pad.h); row += gridDim.y) {
    const unsigned image = row / unsigned(pad.h), line = row % unsigned(pad.h);
    const S* pixel = from + image * pad.strides[0] + line * pad.strides[2] + column * pad.strides[3];
    Pack<S, WIDTH> values{};
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (inside && channel + i < pad.c) values.at[i] = pixel[(channel + i) * pad.strides[1]];
    store(to + (int64_t(row) * width * packs + at) * WIDTH, values);
  }
}

template <class S>
cudaError_t run(const ConvPad& pad, cudaStream_t stream) {
  const int64_t packs = pad.channels / WIDTH * (pad.w + 2 * pad.around), rows = pad.n * pad.h;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned((packs + THREADS - 1) / THREADS), unsigned(rows < MOST_ROWS ? rows : MOST_ROWS));
  config.blockDim = dim3(THREADS);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, conv_pad_kernel<S>, static_cast<const S*>(pad.from), static_cast<S*>(pad.to), pad);
}

}  // namespace

cudaError_t conv_pad(const ConvPad& pad, cudaStream_t stream) {
  return pad.type == ScalarType::Float ? run<uint32_t>(pad, stream) : run<uint16_t>(pad, stream);
}

}  // namespace atrous::cuda
