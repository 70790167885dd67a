// Registration of the CUDA primitives, each beside its kernel, and the declaration of the one that another one calls.
#pragma once

#include "../op_adapter.h"

// The host emulation of the tests registers the same functions in a library of its own, for tensors on the CPU.
#ifndef ATROUS_LIBRARY
#define ATROUS_LIBRARY atrous
#define ATROUS_CUDA_KEY CUDA
#endif

namespace atrous::cuda {

Tensor epilogue(const Epilogue& arguments, const Tensor& z);

}  // namespace atrous::cuda
