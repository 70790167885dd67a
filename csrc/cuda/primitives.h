// The primitives on CUDA: arguments, results and errors are those of ../cpu/primitives.h.
#pragma once

#include "../arguments.h"

namespace atrous::cuda {

Tensor epilogue(const Arguments& arguments, const Tensor& z);
Tensor epilogue_reduce(const Arguments& arguments, const Tensor& grad, const Tensor& z);
std::tuple<Tensor, Tensor> epilogue_backward(const Arguments& arguments, const Tensor& grad, const Tensor& z,
                                             const OptionalTensor& means, bool need_z, bool need_residual);
std::tuple<Tensor, Tensor> statistics(const Tensor& z);

}  // namespace atrous::cuda
