// What follows a product in shares: their sum, always in the same order, and the epilogue on it.
#include "conv_problem.h"
#include "conv_select.h"

namespace atrous::cuda {

namespace {

constexpr int WIDTH = 4;                  // channels of a thread: one 16-byte access to the sums
constexpr int COLUMNS = 32, ROWS = 8;     // threads of a block, channels x pixels
constexpr int BLOCKS = 2;                 // of a multiprocessor: up to 128 registers a thread
constexpr int64_t MOST_ROW_BLOCKS = 512;  // a thread keeps its channels' values for all of its pixels

template <class T>
struct alignas(WIDTH * sizeof(T)) Pack {
  T values[WIDTH];
};

template <class T>
struct Sums {
  const float* partial;  // [splits][pixels][channels]
  int splits;
  int64_t pixels, channels;
  const T* residual;
  T* y;
};

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float x, float* y) { *y = x; }
__device__ inline void narrow(float x, __half* y) { *y = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16* y) { *y = __float2bfloat16_rn(x); }

// WIDTH channels of one pixel.
template <Slope SLOPE, Residual RESIDUAL, class T>
__device__ void finish(const Sums<T>& sums, int64_t at, const Channel* channels) {
  Pack<float> z = *reinterpret_cast<const Pack<float>*>(sums.partial + at);
  for (int split = 1; split < sums.splits; ++split) {
    const int64_t share = split * sums.pixels * sums.channels;
    const Pack<float> more = *reinterpret_cast<const Pack<float>*>(sums.partial + share + at);
    for (int i = 0; i < WIDTH; ++i) z.values[i] += more.values[i];
  }
  Pack<T> residual{}, y;
  if (RESIDUAL != Residual::none) residual = *reinterpret_cast<const Pack<T>*>(sums.residual + at);
  for (int i = 0; i < WIDTH; ++i) {
    const Affine<float> channel{channels[i].scale, channels[i].shift};
    narrow(
        epilogue<float, SLOPE, RESIDUAL, false>(z.values[i], channel, channels[i].slope, widen(residual.values[i]), 1),
        &y.values[i]);
  }
  *reinterpret_cast<Pack<T>*>(sums.y + at) = y;
}

template <Slope SLOPE, Residual RESIDUAL, class T>
__global__ void __launch_bounds__(COLUMNS* ROWS, BLOCKS) conv_reduce_kernel(Sums<T> sums, ChannelVectors vectors) {
  const int64_t first = (int64_t(blockIdx.x) * COLUMNS + threadIdx.x) * WIDTH;
  if (first >= sums.channels) return;
  Channel channels[WIDTH];
  for (int i = 0; i < WIDTH; ++i) channels[i] = channel_at(vectors, first + i);
  for (int64_t pixel = int64_t(blockIdx.y) * ROWS + threadIdx.y; pixel < sums.pixels; pixel += gridDim.y * ROWS)
    finish<SLOPE, RESIDUAL>(sums, pixel * sums.channels + first, channels);
}

template <class T>
cudaError_t reduce(const ConvProblem& problem, int splits, const float* partial, cudaStream_t stream) {
  const Sums<T> sums{partial,
                     splits,
                     problem.pixels(),
                     problem.k,
                     static_cast<const T*>(problem.residual),
                     static_cast<T*>(problem.y)};
  const int64_t row_blocks = (sums.pixels + ROWS - 1) / ROWS;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned((sums.channels + COLUMNS * WIDTH - 1) / (COLUMNS * WIDTH)),
                        unsigned(row_blocks < MOST_ROW_BLOCKS ? row_blocks : MOST_ROW_BLOCKS));
  config.blockDim = dim3(COLUMNS, ROWS);
  config.stream = stream;
  return select_epilogue(problem.slope, problem.place, [&](auto slope, auto place) {
    const auto kernel = conv_reduce_kernel<slope, place, T>;
    return cudaLaunchKernelEx(&config, kernel, sums, problem.vectors);
  });
}

}  // namespace

cudaError_t conv_reduce(const ConvProblem& problem, int splits, const float* partial, cudaStream_t stream) {
  if (problem.type == Type::fp16) return reduce<__half>(problem, splits, partial, stream);
  if (problem.type == Type::bf16) return reduce<__nv_bfloat16>(problem, splits, partial, stream);
  return reduce<float>(problem, splits, partial, stream);
}

}  // namespace atrous::cuda
