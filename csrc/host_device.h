// Functions compiled for both the CPU and the GPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define ATROUS_HD __host__ __device__ __forceinline__
#else
#define ATROUS_HD inline
#endif

namespace atrous {

// True if a vector of 16 bytes can be accessed here.
ATROUS_HD bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }
ATROUS_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace atrous
