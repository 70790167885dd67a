// Registration of the CUDA primitives, each beside its kernel, and the declarations of those that another one calls.
#pragma once

#include "../channel_vectors.h"
#include "../op_adapter.h"
#include "device.h"

// The host emulation of the tests registers the same functions in a library of its own, for tensors on the CPU.
#ifndef ATROUS_LIBRARY
#define ATROUS_LIBRARY atrous
#define ATROUS_CUDA_KEY CUDA
#endif

namespace atrous::cuda {

Tensor epilogue(Epilogue& arguments, const Tensor& z);

// Memory for the gradient of a vector, in the vector's dtype; data is null if there is none.
struct VectorGradient {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;

  template <class T>
  ATROUS_HD void write(int64_t channel, T value) const {
    if (!data) return;
    switch (type) {
      case ScalarType::Float:
        return void(static_cast<float*>(data)[channel] = float(value));
      case ScalarType::Double:
        return void(static_cast<double*>(data)[channel] = double(value));
      case ScalarType::Half:
        return void(static_cast<Half*>(data)[channel] = narrow<Half>(float(value)));
      default:
        return void(static_cast<BFloat16*>(data)[channel] = narrow<BFloat16>(float(value)));
    }
  }
};

struct VectorGradients {
  VectorGradient gamma, beta, slope;
};

// The two passes of the backward over a z that has elements, after all checks. reduce_pass returns (3, C), the sums of
// which the first two are divided by `count`, and writes the sums themselves to `gradients`. backward_pass writes dz
// and du, each if it has elements.
Tensor reduce_pass(const Epilogue& arguments, const Tensor& grad, const Tensor& z, Order order, int64_t count,
                   const VectorGradients& gradients, const Device& device);
void backward_pass(const Epilogue& arguments, const Tensor& grad, const Tensor& z, Order order,
                   const OptionalTensor& means, const Tensor& dz, const Tensor& du, const Device& device);

}  // namespace atrous::cuda
