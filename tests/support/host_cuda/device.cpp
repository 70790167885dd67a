// Replaces csrc/cuda/device.cpp: the device is the CPU.
#include "../../../csrc/cuda/device.h"

#include <torch/headeronly/util/Exception.h>

namespace atrous::cuda {

Device::Device(const char* name, const Tensor& tensor) : index_(0), stream_(nullptr) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a tensor on the CPU");
}
int Device::multiprocessors() const { return 8; }
int Device::capability() const { return 80; }
void Device::check(const char*, const OptionalTensor&) const {}
void Device::check(const Epilogue&) const {}
void check(cudaError_t error, const char* kernel) {
  STD_TORCH_CHECK(error == cudaSuccess, kernel, ": CUDA error ", int(error));
}

}  // namespace atrous::cuda
