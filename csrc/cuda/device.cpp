#include "device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

namespace atrous::cuda {

Device::Device(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cuda(), name, ": expected a tensor on a CUDA device like the others, got one elsewhere");
  index_ = tensor.get_device_index();
  guard_ = std::make_shared<torch::stable::accelerator::DeviceGuard>(index_);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

void Device::check(const char* name, const OptionalTensor& tensor) const {
  STD_TORCH_CHECK(!tensor || (tensor->is_cuda() && tensor->get_device_index() == index_), name,
                  ": expected a tensor on cuda:", index_, " like the others, got one elsewhere");
}

int Device::multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }

int Device::capability() const {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
}

int Device::attribute(cudaDeviceAttr name) const {
  int value = 0;
  cuda::check(cudaDeviceGetAttribute(&value, name, index_), "device");
  return value;
}

void Device::check(const Epilogue& arguments) const {
  check("mean", arguments.mean);
  check("var", arguments.var);
  check("gamma", arguments.gamma);
  check("beta", arguments.beta);
  check("slope", arguments.slope);
  check("seed", arguments.seed);
  check("residual", arguments.residual);
}

void check(cudaError_t error, const char* kernel) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which would stay otherwise
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const bool no_image = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
  STD_TORCH_CHECK(!no_image, kernel, ": this build of atrous has no code for cuda:", device, ", of compute capability ",
                  major, ".", minor, ": build it again with TORCH_CUDA_ARCH_LIST=", major, ".", minor,
                  major == 9 && minor == 0 ? "a" : "", ", or choose another backend");
  STD_TORCH_CHECK(false, kernel, ": the launch failed: ", cudaGetErrorString(error));
}

}  // namespace atrous::cuda
