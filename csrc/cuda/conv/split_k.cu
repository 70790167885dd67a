// The second pass of split-K: sums the slices, always in the same order, and applies the epilogue.
#include "../static_switch.h"
#include "../vector_access.cuh"
#include "problem.h"

namespace atrous::cuda {

namespace {

constexpr int WIDTH = 4;                 // channels of a thread: one 16-byte access to the partial sums
constexpr int COLUMNS = 32, ROWS = 8;    // threads of a block, channels x pixels
constexpr int BLOCKS = 2;                // per multiprocessor: up to 128 registers per thread
constexpr int64_t MAX_ROW_BLOCKS = 512;  // a thread reads its channels' parameters once for all of its pixels

template <class T>
struct Sums {
  const float* partial;  // [splits][pixels][channels]
  int splits;
  int64_t pixels, channels;
  const T* residual;
  T* y;
};

// Computes WIDTH channels of one pixel.
template <Slope SLOPE, Residual RESIDUAL, class T>
__device__ void finish(const Sums<T>& sums, int64_t at, const Channel<float>* channels) {
  AlignedVector<float, WIDTH> z = load<float, WIDTH>(sums.partial + at);
  for (int split = 1; split < sums.splits; ++split) {
    const AlignedVector<float, WIDTH> slice =
        load<float, WIDTH>(sums.partial + split * sums.pixels * sums.channels + at);
    for (int i = 0; i < WIDTH; ++i) z.at[i] += slice.at[i];
  }
  AlignedVector<T, WIDTH> y{};
  if (RESIDUAL != Residual::none) y = load<T, WIDTH>(sums.residual + at);
  for (int i = 0; i < WIDTH; ++i)
    y.at[i] = narrow<T>(
        epilogue<float, SLOPE, RESIDUAL, false>(z.at[i], channels[i].affine, channels[i].slope, widen(y.at[i]), 1));
  store(sums.y + at, y);
}

template <Slope SLOPE, Residual RESIDUAL, class T>
__global__ void __launch_bounds__(COLUMNS* ROWS, BLOCKS) conv_reduce_kernel(Sums<T> sums, ChannelVectors vectors) {
  const int64_t first = (int64_t(blockIdx.x) * COLUMNS + threadIdx.x) * WIDTH;
  if (first >= sums.channels) return;
  Channel<float> channels[WIDTH];
  for (int i = 0; i < WIDTH; ++i) channels[i] = vectors.at<float>(first + i);
  for (int64_t pixel = int64_t(blockIdx.y) * ROWS + threadIdx.y; pixel < sums.pixels; pixel += gridDim.y * ROWS)
    finish<SLOPE, RESIDUAL>(sums, pixel * sums.channels + first, channels);
}

template <class T>
cudaError_t launch_reduce(const ConvProblem& problem, int splits, const float* partial, cudaStream_t stream) {
  const Sums<T> sums{partial,
                     splits,
                     problem.pixels(),
                     problem.k,
                     static_cast<const T*>(problem.residual),
                     static_cast<T*>(problem.y)};
  const int64_t row_blocks = (sums.pixels + ROWS - 1) / ROWS;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned((sums.channels + COLUMNS * WIDTH - 1) / (COLUMNS * WIDTH)),
                        unsigned(row_blocks < MAX_ROW_BLOCKS ? row_blocks : MAX_ROW_BLOCKS));
  config.blockDim = dim3(COLUMNS, ROWS);
  config.stream = stream;
  return with_slope(problem.slope, problem.place, [&](auto slope, auto place) {
    const auto kernel = conv_reduce_kernel<slope.value, place.value, T>;
    return cudaLaunchKernelEx(&config, kernel, sums, problem.vectors);
  });
}

}  // namespace

cudaError_t conv_reduce(const ConvProblem& problem, int splits, const float* partial, cudaStream_t stream) {
  if (problem.type == ScalarType::Half) return launch_reduce<Half>(problem, splits, partial, stream);
  if (problem.type == ScalarType::BFloat16) return launch_reduce<BFloat16>(problem, splits, partial, stream);
  return launch_reduce<float>(problem, splits, partial, stream);
}

}  // namespace atrous::cuda
