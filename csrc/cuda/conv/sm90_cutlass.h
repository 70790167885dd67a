// CUTLASS's headers for compute capability 9.0, adapted to our needs. Include this before any other CUTLASS header.
#pragma once

// An assert in a kernel is a call, and ptxas serializes all wgmma instructions of a kernel with calls.
#ifndef NDEBUG
#define NDEBUG
#endif

// If the driver refuses a TMA descriptor, CUTLASS prints and aborts, or continues without one if asserts are off. We
// record the driver's error instead, and launch nothing.
#include <cutlass/cuda_host_adapter.hpp>
#undef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(encode) \
  [](auto... values) { return atrous::cuda::record_error(cutlass::call_##encode(values...)); }
namespace atrous::cuda {
inline thread_local CUresult driver_error = CUDA_SUCCESS;
inline CUresult record_error(CUresult result) {
  if (result != CUDA_SUCCESS) driver_error = result;
  return CUDA_SUCCESS;
}
}  // namespace atrous::cuda

#include <cutlass/conv/convolution.h>
#include <cutlass/kernel_hardware_info.hpp>

#include <cute/tensor.hpp>

// after those, which they lack
#include <cute/atom/copy_traits_sm100_im2col.hpp>
#include <cute/atom/copy_traits_sm90_im2col.hpp>
#include <cutlass/conv/collective/collective_builder.hpp>
#include <cutlass/conv/kernel/conv_universal.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
