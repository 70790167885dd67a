// Emulates CUDA C++ on the CPU: csrc/cuda/*.cu run there when compiled with this folder in place of the toolkit's
// headers. A grid runs block by block, under a sanitizer each thread of a block on a host thread (harness.cpp), with
// real barriers, shared memory, shuffles and atomics, so that the findings of AddressSanitizer and ThreadSanitizer hold
// for the kernel.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

template <class T>
void __stwb(T* to, T value) {
  *to = value;
}

using std::max;
using std::min;

namespace host_cuda {

constexpr int WARP = 32;

void run_grid(dim3 grid, dim3 block, const std::function<void()>& kernel);
void wait_for_block();
void wait_for_warp();
// A lane's word, which the other lanes of its warp read.
uint64_t& word_of(int lane);
int lane();

template <class T>
T exchange(T value, int from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  std::memcpy(&word_of(lane()), &value, sizeof value);
  wait_for_warp();
  std::memcpy(&value, &word_of(from), sizeof value);
  wait_for_warp();
  return value;
}

}  // namespace host_cuda

extern thread_local dim3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

inline void __syncthreads() { host_cuda::wait_for_block(); }
inline void __syncwarp(unsigned = ~0u) { host_cuda::wait_for_warp(); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return host_cuda::exchange(value, from % host_cuda::WARP);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return host_cuda::exchange(value, host_cuda::lane() ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const int from = host_cuda::lane() + delta;
  return host_cuda::exchange(value, from < host_cuda::WARP ? from : host_cuda::lane());
}
template <class T>
T atomicAdd(T* address, T value) {
  T before, after;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  do after = before + value;
  while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

enum cudaError_t { cudaSuccess, cudaErrorMisalignedAddress = 716 };
enum cudaDeviceAttr {};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Parameters, class... Values>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Values&&... values) {
  host_cuda::run_grid(config->gridDim, config->blockDim, [&] { kernel(Parameters(values)...); });
  return cudaSuccess;
}
