// Functions that a CPU and a GPU run.
#pragma once

#ifdef __CUDACC__
#define ATROUS_HD __host__ __device__ __forceinline__
#else
#define ATROUS_HD inline
#endif
