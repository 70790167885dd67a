// Functions compiled for both the CPU and the GPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define ATROUS_HD __host__ __device__ __forceinline__
#else
#define ATROUS_HD inline
#endif

namespace atrous {

ATROUS_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace atrous
