// CUTLASS's headers for compute capability 9.0, and what we want of them otherwise: before any other header of CUTLASS.
#pragma once

// An assert in a kernel is a call, for which ptxas lets no wgmma run beside another.
#ifndef NDEBUG
#define NDEBUG
#endif

// CUTLASS prints and aborts where the driver refuses a descriptor of TMA, or goes on without one where asserts are off.
// We note what the driver says; then nothing is launched.
#include <cutlass/cuda_host_adapter.hpp>
#undef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(encode) \
  [](auto... values) { return atrous::cuda::note(cutlass::call_##encode(values...)); }
namespace atrous::cuda {
inline thread_local CUresult refused = CUDA_SUCCESS;
inline CUresult note(CUresult result) {
  if (result != CUDA_SUCCESS) refused = result;
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
