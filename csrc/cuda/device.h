// The GPU of a call: makes it the current device for the object's lifetime and uses torch's current stream on it.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "../arguments.h"

namespace atrous::cuda {

class Device {
 public:
  // The tensor's device; throws if the tensor is not on a CUDA device.
  Device(const char* name, const Tensor& tensor);

  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const;
  int capability() const;  // 90 for 9.0
  // Throws if the tensor exists and is on another device.
  void check(const char* name, const OptionalTensor& tensor) const;
  void check(const Epilogue& arguments) const;

 private:
  int attribute(cudaDeviceAttr name) const;

  int index_;
  std::shared_ptr<void> guard_;
  cudaStream_t stream_;
};

// Throws if a launch failed, with the reason and a remedy.
void check(cudaError_t error, const char* kernel);

template <class... Parameters, class... Values>
void launch(const char* name, void (*kernel)(Parameters...), dim3 blocks, int threads, const Device& device,
            const Values&... values) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.stream = device.stream();
  check(cudaLaunchKernelEx(&config, kernel, Parameters(values)...), name);
}

}  // namespace atrous::cuda
