// The card that a call runs on: the current one while this lives, and torch's current stream there.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "../arguments.h"

namespace atrous::cuda {

class Device {
 public:
  // That of the tensor; throws where it lies on none.
  Device(const char* name, const Tensor& tensor);

  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const;
  int capability() const;  // 90 for 9.0
  // Throws unless there is no tensor, or it lies here too.
  void check(const char* name, const OptionalTensor& tensor) const;
  void check(const Arguments& arguments) const;

 private:
  int attribute(cudaDeviceAttr name) const;

  int index_;
  std::shared_ptr<void> guard_;
  cudaStream_t stream_;
};

// Throws what went wrong with a launch, and what helps.
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
