// What a launch needs of torch and the card, through the stable ABI.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "../arguments.h"

namespace atrous::cuda {

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int multiprocessors(int32_t device) {
  int count = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// From torch's allocator, so that it outlives the launch on this stream, and a CUDA graph keeps it.
inline Tensor workspace(const Tensor& like, size_t bytes) {
  return torch::stable::new_empty(like, Sizes{int64_t(bytes)}, ScalarType::Byte);
}

inline Tensor empty_channels_last(const Tensor& like, const Sizes& sizes) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace atrous::cuda
